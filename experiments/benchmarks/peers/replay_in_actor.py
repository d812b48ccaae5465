"""Any peer's replay of B1 inside a plain Ray actor: a side of B2.

The driver is the learner's process: it asks for batches, two ahead where the replay allows that,
and sends priorities back. A feeder actor plays the tape into the replay, one chunk for each batch.
Batches come as numpy arrays, which Ray shares without a copy.
"""

from __future__ import annotations

import importlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import ray
from replay_side import BATCH, Batch, Replay, wrong_rows
from serve import arguments, serve
from tape import CHUNK, Chunk, load

CLASSES = {
    "cpprb": "CpprbReplay",
    "tianshou": "TianshouReplay",
    "torchrl": "TorchrlReplay",
    "rllib": "RllibReplay",
}
CALLS_AHEAD = 2
FEEDS_AHEAD = 4
"""While the replay is filled."""
OBJECT_STORE_BYTES = 2**30
CHECKED_BATCHES = 10


class ReplayServer:
    """The actor: a replay, and nothing else."""

    def __init__(self, peer: str, capacity: int) -> None:
        make = getattr(importlib.import_module(f"replay_{peer}"), CLASSES[peer])
        self._replay: Replay = make(capacity)

    def add(self, chunks: list[Chunk]) -> None:
        """Add CHUNK transitions."""
        self._replay.insert(chunks)

    def sample(self) -> tuple[Batch, Any]:
        """Draw a batch."""
        batch, where = self._replay.sample()
        return Batch(*(None if array is None else np.asarray(array) for array in batch)), where

    def update(self, where: Any, priorities: np.ndarray) -> None:
        """Set priorities of what was sampled."""
        self._replay.update(where, priorities)


class Feeder:
    """The actor that plays the tape."""

    def __init__(self, tape: str, heads: int, replay: Any) -> None:
        self._chunks, self._replay = load(Path(tape)).play(heads), replay

    def feed(self) -> None:
        """Add one chunk and wait until it is there."""
        ray.get(self._replay.add.remote(next(self._chunks)))


class Learner:
    """The learner's end, without an update."""

    def __init__(self, tape: str, peer: str, capacity: int) -> None:
        side = getattr(importlib.import_module(f"replay_{peer}"), CLASSES[peer])
        self._tape, self._tolerance, self._differs = load(Path(tape)), side.tolerance, side.differs
        self._replay: Any = ray.remote(ReplayServer).remote(peer, capacity)
        self._feeder: Any = ray.remote(Feeder).remote(tape, side.heads, self._replay)
        self._feeds: deque[Any] = deque()
        for _ in range(capacity // CHUNK):
            self._feed(FEEDS_AHEAD)
        ray.get(list(self._feeds))
        # RLlib's priorities go to what was sampled last, and break its trees where that has left
        # meanwhile: it is asked for one thing at a time.
        self._one_by_one = peer == "rllib"
        self._calls: deque[Any] = deque()
        self._priorities = np.random.default_rng(0).uniform(0.1, 1.0, BATCH).astype(np.float32)

    def iteration(self) -> float:
        """Take one batch and answer it."""
        self._take()
        return 1.0

    def check(self) -> dict[str, Any]:
        """Hold some batches against the tape.

        Raises:
          ValueError: more transitions differ than the replay's design explains.
        """
        wrong = sum(len(wrong_rows(self._take(), self._tape)) for _ in range(CHECKED_BATCHES))
        share = wrong / (CHECKED_BATCHES * BATCH)
        if share > self._tolerance:
            raise ValueError(f"{share:.2%} of its transitions differ from the tape's")
        return {"differing": share, "differs": self._differs}

    def _take(self) -> Batch:
        while len(self._calls) < (1 if self._one_by_one else CALLS_AHEAD):
            self._calls.append(self._replay.sample.remote())
        found: Batch
        found, where = ray.get(self._calls.popleft())
        self._replay.update.remote(where, self._priorities)
        self._feed(1)
        if self._one_by_one:
            ray.get(self._feeds[-1])
        return found

    def _feed(self, ahead: int) -> None:
        while len(self._feeds) >= ahead:
            ray.get(self._feeds.popleft())
        self._feeds.append(self._feeder.feed.remote())


def main() -> None:
    """Start Ray and serve."""
    asked = arguments()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    learner = Learner(asked["tape"], asked["peer"], int(asked["capacity"]))
    learner.iteration()
    serve(learner.iteration, (asked["distribution"], "ray", "numpy"), learner.check)


if __name__ == "__main__":
    main()
