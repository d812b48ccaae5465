"""The journal's thread: nobody waits for the disk, and what it cannot do is said."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from naive_replay import assert_same_block, numbered_block
from small_disk import fill, small_disk

from rl_cluster.replay.block import Block
from rl_cluster.replay.journal import Journal, JournalLimits, JournalPlace
from rl_cluster.replay.journal_segments import RestoredBlock, list_segments, newest_first
from rl_cluster.replay.journal_writer import JournalWriter

SCHEMA = "uint8[6,5]"


def journal_in(directory: Path, fence: Any = None) -> Journal:
    return Journal(JournalPlace(directory, SCHEMA, fence), JournalLimits(1 << 40, 0, 1 << 20))


@contextlib.contextmanager
def writer(
    directory: Path, fetch: Callable[[int], Block | None] = numbered_block, **more: Any
) -> Iterator[JournalWriter]:
    made = JournalWriter(journal_in(directory), fetch, **more)
    yield made
    made.close(5.0)


def offer(journal: JournalWriter, ids: range, nbytes: int = 100) -> None:
    for block_id in ids:
        journal.offer(block_id, block_id, nbytes)


def ids_in(directory: Path) -> list[int]:
    ids = []
    for found in newest_first(list_segments(directory)):
        assert isinstance(found, RestoredBlock)
        assert_same_block(found.block, numbered_block(found.block_id))
        ids.append(found.block_id)
    return ids


def test_where_all_are_kept_a_full_disk_delays_blocks_and_loses_none(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 256) as disk:
        fill(disk / "others", leave_pages=1)
        limits = JournalLimits(1 << 40, 0, 40_000, retry_s=0.1)
        journal = Journal(JournalPlace(disk / "replay", SCHEMA, None), limits)
        made = JournalWriter(journal, numbered_block, waiting_bytes=100, keeps_all=True)
        offer(made, range(8))
        wait_until(lambda: made.status().state == "paused")
        assert not made.has_room
        (disk / "others").unlink()
        wait_until(lambda: made.flush(1.0))
        assert ids_in(disk / "replay") == list(range(7, -1, -1))
        assert made.status().lacking == 0 and made.has_room
        made.close(5.0)


@pytest.fixture
def failing_syncs(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the disk takes what is written and fails to sync it."""
    fails, sync = threading.Event(), os.fsync

    def fsync(descriptor: int) -> None:
        if fails.is_set():
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return fails


def test_where_all_are_kept_what_could_not_be_synced_is_written_again_before_it_counts(
    tmp_path: Path, failing_syncs: threading.Event
) -> None:
    """A kernel that failed to write a page counts it as clean: a second sync would say nothing."""
    limits = JournalLimits(1 << 40, 0, 40_000, retry_s=0.1)
    journal = Journal(JournalPlace(tmp_path, SCHEMA, None), limits)
    made = JournalWriter(journal, numbered_block, keeps_all=True)
    offer(made, range(1))
    assert made.flush(60.0)
    failing_syncs.set()
    offer(made, range(1, 4))
    assert not made.flush(1.0), "none of the three is known to be on disk"
    assert [found.block_id for found in newest_first(list_segments(tmp_path)[:1])] == [0]
    failing_syncs.clear()
    offer(made, range(4, 5))
    wait_until(lambda: made.flush(1.0))
    assert ids_in(tmp_path) == [4, 3, 2, 1, 0]
    assert made.status().state == "writing" and made.status().lacking == 0
    made.close(5.0)


def test_where_all_are_kept_the_first_blocks_of_a_journal_are_written_again_too(
    tmp_path: Path, failing_syncs: threading.Event
) -> None:
    failing_syncs.set()
    limits = JournalLimits(1 << 40, 0, 40_000, retry_s=0.1)
    journal = Journal(JournalPlace(tmp_path, SCHEMA, None), limits)
    made = JournalWriter(journal, numbered_block, keeps_all=True)
    offer(made, range(2))
    assert not made.flush(1.0)
    failing_syncs.clear()
    wait_until(lambda: made.flush(1.0))
    assert ids_in(tmp_path) == [1, 0]
    made.close(5.0)


def test_where_all_are_kept_a_disk_that_neither_writes_nor_syncs_for_a_while_loses_none(
    tmp_path: Path, failing_syncs: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that fails has the open segment synced, which fails, too."""
    write = os.write

    def failing(descriptor: int, data: Any) -> int:
        if failing_syncs.is_set():
            raise OSError(5, "Input/output error")
        return write(descriptor, data)

    limits = JournalLimits(1 << 40, 0, 1 << 20, flush_s=1e9, retry_s=0.1)
    journal = Journal(JournalPlace(tmp_path, SCHEMA, None), limits)
    made = JournalWriter(journal, numbered_block, keeps_all=True)
    offer(made, range(2))
    assert made.flush(60.0)
    offer(made, range(2, 4))
    wait_until(lambda: journal.next_block_id == 4 and not journal.is_synced)
    monkeypatch.setattr(os, "write", failing)
    failing_syncs.set()
    offer(made, range(4, 6))
    wait_until(lambda: made.status().state == "paused")
    time.sleep(1.0)  # it tries again meanwhile
    failing_syncs.clear()
    wait_until(lambda: made.flush(1.0))
    assert ids_in(tmp_path) == [5, 4, 3, 2, 1, 0]
    assert made.status().lacking == 0 and made.status().state == "writing"
    made.close(5.0)


def test_a_write_that_fails_leaves_what_was_written_before_it_synced(tmp_path: Path) -> None:
    """The journal leaves that segment, and later syncs are of another."""
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 256) as disk:
        limits = JournalLimits(1 << 40, 0, 1 << 20, retry_s=0.0)
        journal = Journal(JournalPlace(disk / "replay", SCHEMA, None), limits)
        assert journal.append(0, numbered_block(0))
        fill(disk / "others", leave_pages=0)
        assert not journal.append(1, numbered_block(1))
        assert journal.is_synced and journal.take_back() == []
        journal.close()


def kinds(journal: JournalWriter) -> list[str]:
    return [each.kind for each in journal.take_notices()]


def wait_until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline_s, "did not come true within 60 s"
        time.sleep(0.005)


def test_what_was_flushed_is_on_disk(tmp_path: Path) -> None:
    with writer(tmp_path) as journal:
        offer(journal, range(20))
        assert journal.flush(60.0)
        assert ids_in(tmp_path) == list(range(19, -1, -1))
        status = journal.status()
        assert (status.state, status.blocks, status.lacking) == ("writing", 20, 0)
        assert status.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_what_was_offered_before_the_end_is_written(tmp_path: Path) -> None:
    with writer(tmp_path) as journal:
        offer(journal, range(30))
    assert ids_in(tmp_path) == list(range(29, -1, -1))
    assert all(segment.sealed for segment in list_segments(tmp_path))


def test_whoever_offers_never_waits_and_what_finds_no_room_is_skipped_and_said(
    tmp_path: Path,
) -> None:
    """A disk that stands still, and then goes on."""
    moving, asked = threading.Event(), threading.Event()

    def slowly(block_id: int) -> Block:
        asked.set()
        assert moving.wait(10)
        return numbered_block(block_id)

    with writer(tmp_path, slowly, waiting_bytes=1_000) as journal:
        offer(journal, range(1))
        assert asked.wait(10)
        offer(journal, range(1, 50))
        assert journal.status().state == "paused"
        assert journal.status().lacking == 40
        assert kinds(journal) == ["journal_paused"]
        moving.set()
        wait_until(lambda: journal.status().state == "writing")
        offer(journal, range(50, 52))
        assert journal.flush(60.0)
        assert kinds(journal) == ["journal_resumed"]
    assert ids_in(tmp_path) == [51, 50, *range(9, -1, -1)]


def test_a_block_that_is_gone_is_counted(tmp_path: Path) -> None:
    with writer(tmp_path, lambda i: None if i == 3 else numbered_block(i)) as journal:
        offer(journal, range(6))
        assert journal.flush(60.0)
        assert journal.status().lacking == 1
    assert ids_in(tmp_path) == [5, 4, 2, 1, 0]


def test_segments_of_blocks_that_left_go(tmp_path: Path) -> None:
    with writer(tmp_path) as journal:
        offer(journal, range(600))
        assert journal.flush(60.0)
        journal.discard(512)
        wait_until(lambda: len(list_segments(tmp_path)) == 1)
    assert ids_in(tmp_path)[-1] == 512


def test_an_error_ends_the_journal_and_reaches_nobody(tmp_path: Path) -> None:
    def broken(block_id: int) -> Block:
        raise RuntimeError(f"no block {block_id}")

    with writer(tmp_path, broken) as journal:
        offer(journal, range(3))
        assert not journal.flush(5.0)
        wait_until(lambda: journal.status().state == "off")
        offer(journal, range(3, 6))
        assert not journal.flush(5.0)
        notices = journal.take_notices()
    assert [each.kind for each in notices] == ["journal_stopped"]
    assert "RuntimeError: no block 0" in notices[0].cause
    assert list_segments(tmp_path) == []


def test_a_writer_whose_epoch_is_over_ends_and_leaves_all_as_it_is(tmp_path: Path) -> None:
    class Over(RuntimeError):
        """The epoch is over."""

    class Gate:
        stale = False

        @contextlib.contextmanager
        def hold(self) -> Iterator[None]:
            if self.stale:
                raise Over("epoch 1 is over")
            yield

    gate = Gate()
    journal = JournalWriter(journal_in(tmp_path, gate), numbered_block)
    offer(journal, range(5))
    assert journal.flush(60.0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    gate.stale = True
    offer(journal, range(5, 9))
    wait_until(lambda: journal.status().state == "off")
    journal.close(5.0)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "epoch 1 is over" in journal.take_notices()[0].cause


def test_a_flush_that_takes_too_long_says_so(tmp_path: Path) -> None:
    moving = threading.Event()

    def slowly(block_id: int) -> Block:
        assert moving.wait(10)
        return numbered_block(block_id)

    with writer(tmp_path, slowly) as journal:
        offer(journal, range(2))
        assert not journal.flush(0.05)
        moving.set()
        assert journal.flush(60.0)


def test_a_full_disk_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(file: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with writer(tmp_path) as journal:
        offer(journal, range(2))
        assert journal.flush(60.0)
        monkeypatch.setattr(os, "write", full)
        offer(journal, range(2, 6))
        assert not journal.flush(5.0)
        monkeypatch.setattr(os, "write", real)
        assert journal.status().state == "paused" and journal.status().lacking == 4
        assert kinds(journal) == ["journal_paused"]
    assert ids_in(tmp_path) == [1, 0]
