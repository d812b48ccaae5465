"""Where batches come from in the GPU's benchmark: blocks of random frames, gathered three ways.

Invariant: device and host gather the same frames, which is checked.
"""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import torch
from gpu_agents import ACTIONS, FRAME, STACK, STEPS_AHEAD
from torch import Tensor

from rl_cluster.agents.captured import on_device, page_locked
from rl_cluster.agents.dqn import Transitions
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import Batch, BatchRing, BlockSource, MappedBlocks
from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import TransitionRule
from rl_cluster.resident import ResidentBlocks

LENGTH, N_STEP = 64, 3
FED_BATCHES, INSERT_RATE = {"cuda": 256, "cpu": 32}, 10_000
"""As in pong_gpu.yaml, and environment steps a second of some 16 cores."""
RULE = TransitionRule(STACK, N_STEP, 0.99, 1.0)
_WAITING = 2  # batches ahead of the learner, as the replay client has them


def empty_replay(places: int, device: torch.device) -> ResidentBlocks:
    """A replay on the device for blocks of these frames."""
    return ResidentBlocks(RULE, LENGTH, places, FRAME, np.dtype(np.uint8), device)


def some_blocks(count: int) -> list[Block]:
    """Blocks of random frames, without ends."""
    rng, rows = np.random.default_rng(0), STACK - 1 + LENGTH + N_STEP
    no = np.zeros(rows, np.bool_)
    return [
        Block(
            "made", sequence, STACK - 1, LENGTH,
            rng.integers(0, 256, (rows, *FRAME), np.uint8),
            rng.integers(0, ACTIONS, rows).astype(np.int32),
            rng.normal(size=rows).astype(np.float32), no, no, no, np.zeros(rows, np.int32),
        )
        for sequence in range(count)
    ]  # fmt: skip


class Drawn:
    """Uniform samples of blocks that are held."""

    def __init__(self, size: int) -> None:
        self._size, self._rng = size, np.random.default_rng(1)

    def next(self, first: int, end: int) -> Sample:
        """A sample of blocks first to end - 1."""
        block_ids = self._rng.integers(first, end, self._size)
        rows = self._rng.integers(0, LENGTH, self._size)
        return Sample(block_ids, rows, np.ones(self._size, np.float32))


class Gathers:
    """Three ways for a batch's frames to reach the device.

    Args:
      size: transitions in a batch.
    """

    def __init__(self, blocks: list[Block], size: int, device: torch.device) -> None:
        self._device, self._blocks, self._draw = device, len(blocks), Drawn(size)
        self._host = MappedBlocks(RULE, LENGTH)
        self._resident = empty_replay(len(blocks), device)
        for block_id, block in enumerate(blocks):
            self._host.insert(block_id, block)
            self._resident.insert(block_id, block)
        locked = page_locked if device.type == "cuda" else np.empty
        self._ring = BatchRing(STEPS_AHEAD + 2, locked)
        self._memory = BatchRing(STEPS_AHEAD + 2, on_device(device))

    def on_the_device(self) -> None:
        """Only row numbers cross the bus."""
        self._resident.gather(self._sample(), self._memory)

    def page_locked(self) -> None:
        """Gathered on the host; the device fetches the batch."""
        self._send(self._host.gather(self._sample(), self._ring))

    def plain_copies(self) -> None:
        """The same without page-locked memory."""
        self._send(self._host.gather(self._sample(), BatchRing(1)))

    def use_all_memory(self) -> None:
        """Go through every ring once: memory takes longer to get than to fill."""
        for _ in range(STEPS_AHEAD + 2):
            self.on_the_device()
            self.page_locked()

    def check_same(self) -> None:
        """Raise RuntimeError unless device and host gather the same frames."""
        sample = self._sample()
        found = self._resident.gather(sample, self._memory)
        wanted = self._host.gather(sample, BatchRing(1))
        found.wait()
        for here, array in ((found.s_tm1, wanted.s_tm1), (found.s_t, wanted.s_t)):
            if not np.array_equal(here.cpu().numpy(), array):
                raise RuntimeError("the gather on the device finds other frames than the host's")

    def _sample(self) -> Sample:
        return self._draw.next(0, self._blocks)

    def _send(self, batch: Batch) -> None:
        for target, array in zip(
            self._memory.next(batch.s_t.shape, batch.s_t.dtype),
            (batch.s_tm1, batch.s_t),
            strict=True,
        ):
            target.copy_(torch.from_numpy(array), non_blocking=True)


class Feed(threading.Thread):
    """Inserts blocks at a rate and gathers batches ahead, as the replay client's thread does."""

    def __init__(self, source: BlockSource[Tensor], kept: int, device: torch.device) -> None:
        super().__init__(name="gather", daemon=True)
        self._source, self._kept = source, kept
        self._blocks, self._size = some_blocks(8), FED_BATCHES[device.type]
        self._ring = BatchRing(_WAITING + 2 + STEPS_AHEAD, on_device(device))
        self.batches: queue.Queue[Batch[Tensor]] = queue.Queue(_WAITING)
        self.inserted = 0
        self.closed = threading.Event()

    def run(self) -> None:
        """Work until `closed`."""
        draw, start_s = Drawn(self._size), time.perf_counter()
        while not self.closed.is_set():
            due = (time.perf_counter() - start_s) * INSERT_RATE / LENGTH
            while self.inserted < max(1, due):
                self._source.discard(self.inserted - self._kept + 1)
                self._source.insert(self.inserted, self._blocks[self.inserted % len(self._blocks)])
                self.inserted += 1
            sample = draw.next(max(0, self.inserted - self._kept), self.inserted)
            batch = self._source.gather(sample, self._ring)
            while not self.closed.is_set():
                try:
                    self.batches.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue


def tensors_of(batch: Batch[Tensor]) -> Transitions:
    """A gathered batch as the agent takes it."""
    few = (batch.a_tm1, batch.r_t, batch.discount_t, batch.weights)
    actions, rewards, discounts, weights = (torch.from_numpy(array) for array in few)
    return Transitions(batch.s_tm1, actions, rewards, discounts, batch.s_t, weights)
