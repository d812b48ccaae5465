"""The learner's end of replay: maps blocks, gathers batches in a thread, carries TD errors back.

Invariant: blocks are mapped before a sample that needs them is gathered, and let go of as soon as
the replay says that they are gone; so an evicted block leaves the object store.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from rl_cluster.cluster.actors import Actor, Ref, read
from rl_cluster.cluster.messages import SampleReply, SampleRequest
from rl_cluster.learner import AnyBatch, LearnerCounters
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import Allocate, BatchRing, BlockSource
from rl_cluster.replay.index import Sample
from rl_cluster.replay.sequences import SequenceBlocks

_CALLS_AHEAD = 2
_BATCHES_PER_CALL = 4
_WAITING_BATCHES = 2


class ReplayClient:
    """Batches of one task's replay, gathered ahead of the learner.

    Args:
      replay: the replay actor.
      blocks: empty; filled and emptied as the replay says.
      steps_ahead: batches whose memory the learner still reads when it asks for the next.
      allocate: memory of batches.
      counters: the learner's, read when asking.
      reply_timeout_s: a replay that answers nothing for so long has failed.
    """

    def __init__(
        self,
        replay: Actor,
        blocks: BlockSource[Any] | SequenceBlocks,
        counters: Callable[[], LearnerCounters],
        reply_timeout_s: float,
        steps_ahead: int,
        allocate: Allocate[Any],
    ) -> None:
        self._replay, self._mapped, self._counters = replay, blocks, counters
        self._reply_timeout_s = reply_timeout_s
        # Waiting, being filled, being learned from, and still under way on a device.
        self._ring = BatchRing(_WAITING_BATCHES + 2 + steps_ahead, allocate)
        self._known_arrival = -1
        self._oldest_block_id = 0
        self._td_errors: deque[tuple[Sample, np.ndarray]] = deque()
        self._batches: queue.Queue[AnyBatch] = queue.Queue(maxsize=_WAITING_BATCHES)
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gather", daemon=True)
        self.env_steps = 0

    def start(self) -> None:
        """Begin to gather."""
        self._thread.start()

    def next(self, timeout_s: float) -> AnyBatch | None:
        """The next batch, or None where none came in time.

        Raises:
          RayError: the replay is gone.
        """
        try:
            return self._batches.get(timeout=timeout_s)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None

    def report(self, sample: Sample, td_errors: np.ndarray) -> None:
        """Send TD errors back with the next call."""
        self._td_errors.append((sample, td_errors))

    def close(self) -> None:
        """Stop gathering."""
        self._closed.set()

    def _run(self) -> None:
        try:
            self._gather_for_ever()
        except Exception as error:  # noqa: BLE001 - thread boundary: `next` raises it again
            self._failure = error

    def _gather_for_ever(self) -> None:
        calls: deque[Ref] = deque()
        while not self._closed.is_set():
            while len(calls) < _CALLS_AHEAD:
                calls.append(self._replay.sample.remote(self._request()))
            reply: SampleReply = read(calls.popleft(), self._reply_timeout_s)
            self._map(reply)
            for sample in reply.samples:
                self._hand_over(self._mapped.gather(sample, self._ring))

    def _request(self) -> SampleRequest:
        counters = self._counters()
        found = tuple(self._td_errors.popleft() for _ in range(len(self._td_errors)))
        return SampleRequest(
            self._known_arrival,
            counters.policy_version,
            counters.updates,
            _BATCHES_PER_CALL,
            found,
        )

    def _map(self, reply: SampleReply) -> None:
        self.env_steps = reply.env_steps
        # A call sent earlier may name blocks that a later reply already brought.
        new = [each for each in reply.new_blocks if each[0] > self._known_arrival]
        blocks: list[Block] = ray.get([ref for _, _, ref in new], timeout=self._reply_timeout_s)
        for (arrival, block_id, _), block in zip(new, blocks, strict=True):
            self._mapped.insert(block_id, block)
            self._known_arrival = arrival
        # One reply late, since Ray may answer two calls in either order.
        self._mapped.discard(self._oldest_block_id)
        self._oldest_block_id = max(self._oldest_block_id, reply.oldest_block_id)

    def _hand_over(self, batch: AnyBatch) -> None:
        while not self._closed.is_set():
            try:
                self._batches.put(batch, timeout=0.1)
                return
            except queue.Full:
                continue
