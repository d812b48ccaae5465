"""The learner's end of weights: puts each version into the object store beside the updates.

Invariant: the learner's loop only copies; serialization and the announcement happen in a thread of
their own, one version after another, so versions are announced in their order.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import ray

from rl_cluster.cluster.actors import Actor, Ref

_PUT_TIMEOUT_S = 60.0


class WeightsPublisher:
    """Publishes one task's weights."""

    def __init__(self, weights: Actor, task: str, epoch: int) -> None:
        self._weights, self._task, self._epoch = weights, task, epoch
        self._thread = ThreadPoolExecutor(1, "publisher")
        self._under_way: Future[None] | None = None
        self._copy = np.empty(0, np.float32)
        self.newest_ms: float | None = None
        """What the newest publication took of the caller's time."""

    def publish(self, version: int, flat: np.ndarray) -> None:
        """Begin to publish (P,) float32 weights, which may change as soon as this returns.

        Raises:
          RayError: the publication before failed.
        """
        start_s = time.monotonic()
        if self._under_way is not None:
            self._under_way.result(_PUT_TIMEOUT_S)  # long done: a version is many updates old
        if self._copy.shape != flat.shape:
            self._copy = np.empty_like(flat)
        np.copyto(self._copy, flat)
        self._under_way = self._thread.submit(self._put, version)
        self.newest_ms = 1e3 * (time.monotonic() - start_s)

    def _put(self, version: int) -> None:
        ref: Ref = ray.put(self._copy)
        self._weights.publish.remote(self._task, self._epoch, version, [ref])
