"""The real reader and the real replay on a Ray cluster, without a learner or a supervisor."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rl_cluster.cluster.actors import Actor, Ref, read, spawn
from rl_cluster.cluster.reader_actor import ReaderActor, ReaderStatus
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.config import LearnerConfig, ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.config_rovers import StreamConfig
from rl_cluster.replay.block import schema_of
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.streams.cutting import ROW

TASK, BATCH, CAPACITY = "rovers", 64, 4_096
OBJECT_STORE_BYTES = 1 << 30
"""The capacity's 270 MB, and what is on its way."""
TIMEOUT_S = 120.0
_LIVES = itertools.count()


def task(url: str, journal: bool) -> TaskConfig:
    """The quickstart's blocks; a ratio at which a sample is always allowed."""
    return TaskConfig(
        stream=StreamConfig(source="nats", url=url),
        rollout=RolloutConfig(actors=1, block_length=64, blocks_per_collect=4),
        replay=ReplayConfig(
            capacity_transitions=CAPACITY,
            min_transitions=1,
            samples_per_insert=10_000,
            priority_exponent=0,
            journal=journal,
        ),
        learner=LearnerConfig(batch=BATCH),
    )


class Pair:
    """A reader and a replay that takes what it reads.

    Args:
      url: of the server.
      journal: whether blocks are kept on disk before they are acknowledged.
    """

    def __init__(self, url: str, journal: bool) -> None:
        life, config = next(_LIVES), task(url, journal)
        self._dir = tempfile.TemporaryDirectory(
            prefix="stream-pair-",
            ignore_cleanup_errors=True,  # a reader that is being killed may still write
        )
        run_dir = Path(self._dir.name)
        place = JournalPlace(run_dir / "replay", schema_of((ROW,), np.dtype(np.float16)))
        self.replay: Any = spawn(ReplayActor, f"replay-{life}", TASK, config, 0, place)
        self._reader_name = f"reader-{life}"
        self._reader: Any = spawn(ReaderActor, self._reader_name, TASK, config, str(run_dir), 0)
        read(self.replay.attach.remote(None), TIMEOUT_S)
        read(self._reader.health.remote(), TIMEOUT_S)

    def start(self) -> None:
        """Have the replay call the reader for blocks."""
        added: Ref = self.replay.add_rollout.remote(self._reader_name, 0, self._reader)
        read(added, TIMEOUT_S)

    def transitions(self) -> int:
        """That were inserted so far."""
        _, env_steps, _ = read(self.replay.totals.remote(), TIMEOUT_S)
        return int(env_steps)

    def flush(self) -> None:
        """Wait until the journal has all of them."""
        if not read(self.replay.flush.remote(TIMEOUT_S), 2 * TIMEOUT_S):
            raise RuntimeError(f"the journal did not write its blocks within {TIMEOUT_S:.0f} s")

    def counts(self) -> dict[str, int]:
        """Messages read, those that are not acknowledged, transitions and doubles in replay."""
        status: ReaderStatus | None = read(self._reader.status.remote(), TIMEOUT_S)
        kept = read(self.replay.status.remote(), TIMEOUT_S)
        if kept.failed_rollouts:
            raise RuntimeError(f"the reader failed: {kept.failed_rollouts}")
        return {
            "messages": status.intake.messages if status else 0,
            "in_flight": status.intake.in_flight if status else 0,
            "expired": status.intake.source.expired if status else 0,
            "transitions": kept.env_steps,
            "doubles": kept.doubles,
        }

    def close(self) -> None:
        """End both."""
        actors: list[Actor] = [self.replay, self._reader]
        for actor in actors:
            ray.kill(actor)
        self._dir.cleanup()
