"""Our replay through Ray as the side of B2: the real replay actor and the real client.

The driver is the learner's process: it takes batches that `ReplayClient` has gathered and reports
TD errors. A player of the tape stands in for the rollout. The limit is measured here too: the
gather alone, of samples drawn beforehand, from the very blocks that the client has mapped.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cluster import start_cluster
from replay import BLOCK_LENGTH, RULE, BlockMaker
from replay_side import ALPHA, BATCH, BETA, Batch, wrong_rows
from serve import arguments, serve
from tape import CHUNK, ENVIRONMENTS, load

from rl_cluster.cluster.actors import Ref, read, spawn
from rl_cluster.cluster.parcels import Collected
from rl_cluster.cluster.replay_actor import PREFETCHED_BATCHES, ReplayActor
from rl_cluster.cluster.replay_client import ReplayClient
from rl_cluster.config import LearnerConfig, ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.learner import LearnerCounters
from rl_cluster.replay import gather
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import BatchRing, MappedBlocks
from rl_cluster.replay.index import Sample
from rl_cluster.rollout import CollectReport

PACKAGES = ("rl-cluster", "ray", "numpy")
BYTES_PER_TRANSITION = 10_000
"""Room in the object store: a block's 8,397, and some for what is on its way."""
SPARE_BYTES = 400 * 2**20
TIMEOUT_S = 120.0
CHECKED_BATCHES = 10
_LIMIT_SAMPLES = 8


class TapePlayer:
    """Gives blocks when it is asked, as a rollout does."""

    def __init__(self, tape: str) -> None:
        self._chunks = load(Path(tape)).play(ENVIRONMENTS)
        self._maker = BlockMaker()
        self._sealed: list[Block] = []

    def collect(self, num_blocks: int, task_env_steps: int, for_node: str) -> tuple[Any, ...]:
        """Return a `Collected` and then `num_blocks` blocks, as `RolloutActor.collect`."""
        while len(self._sealed) < num_blocks:
            self._sealed += self._maker.add(next(self._chunks))
        blocks, self._sealed = self._sealed[:num_blocks], self._sealed[num_blocks:]
        return Collected([block.info() for block in blocks], CollectReport((), 0.0)), *blocks


def task(capacity: int) -> TaskConfig:
    """Insert CHUNK for each BATCH, and hold `capacity` before the first sample."""
    return TaskConfig(
        rollout=RolloutConfig(
            actors=1, block_length=BLOCK_LENGTH, blocks_per_collect=CHUNK // BLOCK_LENGTH
        ),
        replay=ReplayConfig(
            capacity_transitions=capacity,
            min_transitions=capacity,
            samples_per_insert=BATCH / CHUNK,
            priority_exponent=ALPHA,
            importance_exponent=BETA,
        ),
        learner=LearnerConfig(batch=BATCH),
    )


class Learner:
    """The learner's end, without an update: takes batches, reports TD errors."""

    def __init__(self, tape: str, capacity: int) -> None:
        self._tape = load(Path(tape))
        replay: Any = spawn(ReplayActor, "replay", "tape", task(capacity), 0)
        player = spawn(TapePlayer, "player", tape)
        attached: Ref = replay.attach.remote(None)
        read(attached, TIMEOUT_S)
        added: Ref = replay.add_rollout.remote("player", 0, player)
        read(added, TIMEOUT_S)
        self._mapped = MappedBlocks(RULE, BLOCK_LENGTH)
        self._client = ReplayClient(
            replay, self._mapped, LearnerCounters, TIMEOUT_S, steps_ahead=0, allocate=np.empty
        )
        self._client.start()
        self._td_errors = np.random.default_rng(0).uniform(0.1, 1.0, BATCH).astype(np.float32)
        self._recent: deque[Sample] = deque(maxlen=_LIMIT_SAMPLES)
        self._drawn: Iterator[Sample] | None = None
        self._ring = BatchRing(2)
        self._tenth = capacity // BLOCK_LENGTH // 10

    def take(self) -> gather.Batch:
        """Wait for one batch and answer it."""
        batch = self._client.next(TIMEOUT_S)
        if not isinstance(batch, gather.Batch):
            raise RuntimeError(f"no batch within {TIMEOUT_S:.0f} s")
        self._client.report(batch.sample, self._td_errors)
        self._recent.append(batch.sample)
        return batch

    def work_for(self, seconds: float) -> float:
        """Take batches; those that were gathered before the turn do not count."""
        for _ in range(PREFETCHED_BATCHES):
            self.take()
        batches, end_s = 0, time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            self.take()
            batches += 1
        self._drawn = None
        return float(batches)

    def limit(self) -> float:
        """Gather one sample that was drawn beforehand."""
        if self._drawn is None:
            self._drawn = itertools.cycle(self._still_held())
        self._mapped.gather(next(self._drawn), self._ring)
        return 1.0

    def _still_held(self) -> list[Sample]:
        """The last samples, with the oldest tenth of the blocks, which may go, moved up by one."""
        newest = max(int(sample.block_ids.max()) for sample in self._recent)
        oldest = newest - 9 * self._tenth
        return [
            replace(
                sample,
                block_ids=np.where(
                    sample.block_ids < oldest, sample.block_ids + self._tenth, sample.block_ids
                ),
            )
            for sample in self._recent
        ]

    def check(self) -> dict[str, Any]:
        """Hold some batches against the tape.

        Raises:
          ValueError: a transition differs.
        """
        for _ in range(CHECKED_BATCHES):
            found = self.take()
            batch = Batch(
                found.s_tm1, found.a_tm1, found.r_t, found.discount_t, found.s_t, found.weights
            )
            if wrong := wrong_rows(batch, self._tape):
                raise ValueError(f"{len(wrong)} of {BATCH} transitions differ from the tape's")
        return {"checked": CHECKED_BATCHES * BATCH, "differing": 0.0, "differs": ""}


def main() -> None:
    """Start Ray and serve."""
    asked = arguments()
    capacity = int(asked["capacity"])
    start_cluster("bench", BYTES_PER_TRANSITION * capacity + SPARE_BYTES)
    learner = Learner(asked["tape"], capacity)
    learner.take()
    serve(lambda: 0.0, PACKAGES, learner.check, learner.work_for, learner.limit)


if __name__ == "__main__":
    main()
