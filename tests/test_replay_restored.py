"""A replay that is killed comes back out of its journal, in a real cluster."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from naive_replay import numbered_block
from ray.exceptions import RayError

from rl_cluster.cluster.actors import Actor, cause_of, read, spawn
from rl_cluster.cluster.messages import ReplayState, ReplayStatus
from rl_cluster.cluster.parcels import Collected
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.cluster.replay_client import ReplayClient
from rl_cluster.config import AgentConfig, LearnerConfig, ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.learner import LearnerCounters
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import Batch, BatchRing, MappedBlocks
from rl_cluster.replay.journal import Journal, JournalLimits, JournalPlace
from rl_cluster.replay.journal_segments import list_segments
from rl_cluster.replay.transitions import TransitionRule
from rl_cluster.rollout import CollectReport

LENGTH, BATCH, PLACES = 4, 8, 60
RULE = TransitionRule(2, 1, 0.9, None)
CONFIG = TaskConfig(
    rollout=RolloutConfig(block_length=LENGTH, blocks_per_collect=1),
    agent=AgentConfig(frame_stack=2, n_step=1),
    replay=ReplayConfig(
        capacity_transitions=PLACES * LENGTH,
        min_transitions=40,
        samples_per_insert=2.0,
        disk_reserve_bytes=0,
    ),
    learner=LearnerConfig(batch=BATCH),
)
TIMEOUT_S = 30.0


class Player:
    """Plays nothing: brings the next numbered blocks."""

    def __init__(self, first: int) -> None:
        self._next = first

    def collect(self, num_blocks: int, env_steps: int, for_node: str) -> tuple[Any, ...]:
        blocks: list[Block] = [numbered_block(self._next + i) for i in range(num_blocks)]
        self._next += num_blocks
        return Collected([block.info() for block in blocks], CollectReport((), 0.1)), *blocks


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        address="local",
        namespace="test-replay-restored",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


class Task:
    """One life of a replay, with its player and its learner's end."""

    def __init__(self, directory: Path, life: int) -> None:
        place = JournalPlace(directory, "uint8[6,5]")
        self.replay: Actor = spawn(ReplayActor, f"{directory}-{life}", "task", CONFIG, 0, place)
        self._life = life
        self.client: ReplayClient[np.ndarray] = ReplayClient(
            self.replay, MappedBlocks(RULE, LENGTH), LearnerCounters, TIMEOUT_S, 0, np.empty
        )

    def attach(self, state: ReplayState | None) -> None:
        read(self.replay.attach.remote(state), TIMEOUT_S)

    def play(self, first: int) -> None:
        player = spawn(Player, f"player-{id(self)}-{self._life}", first)
        read(self.replay.add_rollout.remote("player", 0, player), TIMEOUT_S)

    def learn(self, batches: int) -> Iterator[Batch]:
        """Draw batches and answer each with its own TD errors."""
        for number in range(batches):
            batch = self.client.next(TIMEOUT_S)
            assert batch is not None
            yield batch
            self.client.report(batch.sample, np.float32(0.01) * (number + np.arange(BATCH)))

    def status(self) -> ReplayStatus:
        status: ReplayStatus = read(self.replay.status.remote(), TIMEOUT_S)
        return status

    def state(self) -> ReplayState:
        state: ReplayState = read(self.replay.state.remote(), TIMEOUT_S)
        return ReplayState(state.counters, state.block_ids.copy(), state.priorities.copy())

    def flush(self) -> None:
        assert read(self.replay.flush.remote(TIMEOUT_S), TIMEOUT_S)

    def kill(self) -> None:
        """As a host's out-of-memory killer does."""
        self.client.close()
        os.kill(read(self.replay.health.remote(), TIMEOUT_S).pid, signal.SIGKILL)
        with pytest.raises(RayError):
            while True:
                self.status()

    def restored(self) -> ReplayStatus:
        """The status once all is back, with every notice on the way."""
        notices: list[dict[str, str]] = []
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            status = self.status()
            notices += status.notices
            if status.journal_state != "restoring" and notices:
                return replace(status, notices=tuple(notices))
            time.sleep(0.02)
        raise AssertionError(f"not restored: {status}")


def first_life(directory: Path, batches: int) -> tuple[ReplayState, int]:
    """Learn, save, go on a little, and die; the saved state, and the blocks that were flushed."""
    task = Task(directory, 1)
    task.attach(None)
    task.play(0)
    task.client.start()
    deque(task.learn(batches), maxlen=0)
    saved = task.state()
    deque(task.learn(4), maxlen=0)
    task.flush()
    flushed = task.status().journal_blocks
    task.kill()
    return saved, flushed


def written_by_another(directory: Path, blocks: int) -> None:
    """A journal of numbered blocks whose writer died."""
    place = JournalPlace(directory, "uint8[6,5]")
    journal = Journal(place, JournalLimits(1 << 30, 0))
    for block_id in range(blocks):
        assert journal.append(block_id, numbered_block(block_id))


def assert_right(batch: Batch, restored: range) -> int:
    """Compare what was drawn of restored blocks with what was written; return how many that is."""
    blocks = MappedBlocks(RULE, LENGTH)
    for block_id in restored:
        blocks.insert(block_id, numbered_block(block_id))
    old = np.isin(batch.sample.block_ids, restored)
    if old.any():
        picked = type(batch.sample)(
            batch.sample.block_ids[old], batch.sample.rows[old], batch.sample.weights[old]
        )
        wanted = blocks.gather(picked, BatchRing(1))
        for name in ("s_tm1", "a_tm1", "r_t", "discount_t", "s_t"):
            np.testing.assert_array_equal(getattr(batch, name)[old], getattr(wanted, name))
    return int(old.sum())


def test_a_killed_replay_comes_back_with_its_priorities_and_learning_goes_on(
    tmp_path: Path,
) -> None:
    saved, flushed = first_life(tmp_path, batches=60)
    assert flushed > PLACES  # some had been evicted
    task = Task(tmp_path, 2)
    task.attach(saved)
    status = task.restored()
    assert status.restored_blocks == PLACES and status.fill == 1.0 and status.warm
    assert status.env_steps == saved.counters["env_steps"]
    assert [each["kind"] for each in status.notices] == ["restored"]
    state = task.state()
    assert state.block_ids[-1] >= flushed - 1
    live = np.isin(saved.block_ids, state.block_ids)
    assert live.sum() > PLACES // 2
    at = np.searchsorted(state.block_ids, saved.block_ids[live])
    np.testing.assert_array_equal(state.priorities[at], saved.priorities[live])
    assert len(np.unique(saved.priorities)) > 20

    task.client.start()
    task.play(10_000)
    ids = range(int(state.block_ids[0]), int(state.block_ids[-1]) + 1)
    assert sum(assert_right(batch, ids) for batch in task.learn(20)) > BATCH
    later = task.status()
    assert later.journal_state == "writing" and later.lacking_blocks == 0
    assert later.env_steps > status.env_steps
    task.kill()


def test_learning_goes_on_while_blocks_come_back_whatever_is_damaged(tmp_path: Path) -> None:
    flushed = 90
    written_by_another(tmp_path, flushed)
    segment = list_segments(tmp_path)[-1]
    data = bytearray(segment.path.read_bytes())
    data[7 * len(data) // 8] ^= 1  # read early: newer blocks push the old ones out meanwhile
    segment.path.write_bytes(data)
    task = Task(tmp_path, 2)
    task.client.start()
    task.attach(None)
    task.play(10_000)
    assert sum(assert_right(batch, range(flushed)) for batch in task.learn(30)) > BATCH
    status = task.restored()
    kinds = [each["kind"] for each in status.notices]
    assert kinds == ["journal_damaged", "restored"]
    assert str(segment.path) in status.notices[0]["cause"]
    assert PLACES // 2 < status.restored_blocks < PLACES
    task.kill()


def test_restoring_takes_the_object_store_and_no_other_memory(tmp_path: Path) -> None:
    """60 blocks of 1.5 MB."""
    shape, schema = (512, 512), "uint8[512,512]"
    journal = Journal(JournalPlace(tmp_path, schema), JournalLimits(1 << 30, 0))
    for block_id in range(PLACES):
        assert journal.append(block_id, numbered_block(block_id, obs_shape=shape))
    replay = spawn(ReplayActor, "large", "task", CONFIG, 0, JournalPlace(tmp_path, schema))
    pid = read(replay.health.remote(), TIMEOUT_S).pid
    before = private_bytes(pid)
    read(replay.attach.remote(None), TIMEOUT_S)
    deadline_s = time.monotonic() + TIMEOUT_S
    while (status := read(replay.status.remote(), TIMEOUT_S)).restored_blocks < PLACES:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert status.nbytes > 90_000_000
    assert private_bytes(pid) - before < 25_000_000
    ray.kill(replay)


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_a_journal_of_another_task_is_refused(tmp_path: Path) -> None:
    written_by_another(tmp_path, 3)
    place = JournalPlace(tmp_path, "float32[4]")
    replay = spawn(ReplayActor, "other", "task", CONFIG, 0, place)
    with pytest.raises(RayError) as refused:
        read(replay.status.remote(), TIMEOUT_S)
    # What people are told: the last line, which an error while the error is told would take.
    assert "holds uint8[6,5]; this task has float32[4]" in cause_of(refused.value)
