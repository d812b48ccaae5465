"""What a server has acknowledged to rovers is in the journal once, whoever dies on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from chaos.counts import count
from chaos.figures import record_figure
from naive_replay import assert_same_block
from nats_server import NatsServer
from numbered_stream import Sender, experience, in_journal, wanted
from ray.exceptions import GetTimeoutError
from reading_task import CONFIG, Task, is_dead, local_cluster, owed, task_of, until
from small_disk import fill, small_disk

from rl_cluster.cluster import replay_journal
from rl_cluster.cluster.actors import read
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.replay.journal_segments import RestoredBlock, list_segments, newest_first
from rl_cluster.streams.cutting import cut


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster("test-exactly-once"):
        yield


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


def require_exactly_once(task: Task, messages: int) -> None:
    """Every transition of these messages is in the journal, in one block of one message."""
    found, sent = in_journal(task.journal), wanted(messages)
    lost, doubled = sent - found, found - sent
    assert (lost.total(), doubled.total(), found.total()) == (0, 0, sent.total())


@pytest.mark.timeout(count(3600, 400))
def test_a_reader_killed_between_journal_and_acknowledgement_neither_loses_nor_doubles(
    server: NatsServer, tmp_path: Path
) -> None:
    kills = count(50, 3)
    with task_of(server, tmp_path) as task:
        task.read_on(dies_at=1)
        with Sender(server, per_s=10) as sender:
            for life in range(1, kills + 1):
                reader = task.reader
                until(lambda reader=reader: is_dead(reader), "a reader's death")
                task.read_on(dies_at=0 if life == kills else 1 + life % 3)
        task.await_acknowledged()
        doubles = task.doubles
    assert doubles >= kills  # at each death something was kept and not acknowledged
    require_exactly_once(task, sender.acknowledged)
    row = "reader killed between journal and acknowledgement"
    record_figure(row, "messages", sender.acknowledged, "messages")
    record_figure(row, "injected", kills, "times")
    record_figure(row, "blocks that came again and were refused", doubles, "blocks")


@pytest.mark.timeout(count(3600, 400))
def test_server_and_replay_killed_under_load_neither_lose_nor_double(
    server: NatsServer, tmp_path: Path
) -> None:
    kills, rng = count(10, 2), random.Random(1)
    with task_of(server, tmp_path) as task:
        task.read_on()
        with Sender(server, per_s=20) as sender:
            for number in range(1, kills + 1):
                await_messages(sender, 30)
                time.sleep(rng.uniform(0, 0.5))
                server.kill()
                time.sleep(rng.uniform(0, 1.5))
                server.start()
                if number % 3 == 2:
                    await_messages(sender, 10)
                    task.kill_replay()
            await_messages(sender, 30)
        task.await_acknowledged()
        status, doubles = task.status(), task.doubles
    assert status.restored_blocks > 0
    require_exactly_once(task, sender.acknowledged)
    row = "kill -9 of the server under load, and of replay"
    record_figure(row, "messages", sender.acknowledged, "messages")
    record_figure(row, "injected", kills, "times")
    record_figure(row, "blocks that came again and were refused", doubles, "blocks")


def await_messages(sender: Sender, more: int) -> None:
    before = sender.acknowledged
    until(lambda: sender.acknowledged >= before + more, "messages acknowledged to rovers")


def test_a_full_disk_holds_acknowledgements_back_and_all_arrives_when_there_is_room(
    server: NatsServer, tmp_path: Path
) -> None:
    messages = 40
    limits = replace(CONFIG.replay, journal_max_bytes=10 << 20)
    with small_disk(mounted(tmp_path), 4096) as disk:
        filler = disk / "filler"
        with task_of(server, disk, replace(CONFIG, replay=limits)) as task:
            fill(filler, leave_pages=0)
            task.read_on()
            with Sender(server, per_s=1000, most=messages):
                pass
            until(lambda: task.status().journal_state == "paused", "a journal that pauses")
            time.sleep(4 * CONFIG.stream.ack_wait_s)
            assert owed(server) == messages
            filler.unlink()
            task.await_acknowledged()
            require_notices(task, "journal_resumed")
        require_exactly_once(task, messages)


def test_a_block_that_the_object_store_does_not_give_in_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is frozen may be replaced, and what it held is then nowhere."""
    asked = []

    def read_late(ref: Any, timeout_s: float) -> Any:
        asked.append(ref)
        if len(asked) < 3:
            raise GetTimeoutError("the object store does not answer")
        return read(ref, timeout_s)

    monkeypatch.setattr(replay_journal, "read", read_late)
    (block, *_) = cut(
        experience(0), source="r", message="m", position=1, policy_version=0, length=4
    )
    place = JournalPlace(tmp_path, block.schema)
    journal = replay_journal.ReplayJournal(place, CONFIG)
    journal.offer(0, ray.put(block), 1)
    assert journal.flush(60.0) and len(asked) == 3
    (found,) = newest_first(list_segments(tmp_path))
    assert isinstance(found, RestoredBlock)
    assert_same_block(found.block, block)


def mounted(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    return disk


def require_notices(task: Task, kind: str) -> None:
    until(lambda: kind in [each["kind"] for each in task.status().notices], kind)
