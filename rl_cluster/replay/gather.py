"""The gather: sampled places in blocks become one batch of numpy arrays.

Invariant: blocks are only read, never written: they are zero-copy views of shared memory. What
comes out is in memory of its own, so a batch stays whole when its blocks are evicted, until its
memory's turn comes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rl_cluster.replay.block import Block
from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import BlockTransitions, TransitionRule, block_transitions

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Makes an array of a shape and dtype; its contents do not matter."""


@dataclass(frozen=True)
class Batch:
    """Transitions to learn from, in DQN Zoo's notation."""

    s_tm1: np.ndarray
    """(B, stack, *obs_shape): observations before."""
    a_tm1: np.ndarray
    """(B,) int64: actions."""
    r_t: np.ndarray
    """(B,) float32: n-step rewards."""
    discount_t: np.ndarray
    """(B,) float32: discount of the bootstrap, 0 at terminal states."""
    s_t: np.ndarray
    """(B, stack, *obs_shape): observations after."""
    weights: np.ndarray
    """(B,) float32: importance weights, at most 1."""
    sample: Sample
    """Where each came from, for its new priority."""
    sources: tuple[str, ...]
    """Who collected each."""

    def is_finite(self) -> bool:
        """Whether every number of the batch is."""
        arrays = (self.s_tm1, self.r_t, self.discount_t, self.s_t, self.weights)
        return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")

    def check_valid(self) -> None:
        """Raise ValueError unless shapes and dtypes agree."""
        size = len(self.a_tm1)
        if self.s_tm1.shape != self.s_t.shape or self.s_tm1.dtype != self.s_t.dtype:
            raise ValueError(f"s_tm1 {self.s_tm1.shape} and s_t {self.s_t.shape} differ")
        for name in ("r_t", "discount_t", "weights"):
            array = getattr(self, name)
            if array.shape != (size,) or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, not float32({size},)")


class BatchRing:
    """Memory for the observations of batches, used again in turn.

    Fresh memory for every batch takes longer to map, page by page, than to fill.

    Args:
      size: batches that may be in use at once.
      allocate: such as of page-locked memory, which a GPU reads by itself.
    """

    def __init__(self, size: int, allocate: Allocate = np.empty) -> None:
        self._allocate = allocate
        self._pairs: deque[tuple[np.ndarray, np.ndarray] | None] = deque([None] * size)

    def next(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays for s_tm1 and s_t: those of `size` calls ago, where they fit."""
        pair = self._pairs.popleft()
        if pair is None or pair[0].shape != shape or pair[0].dtype != dtype:
            pair = self._allocate(shape, dtype), self._allocate(shape, dtype)
        self._pairs.append(pair)
        return pair


class MappedBlocks:
    """The blocks that are drawn from, laid out for the gather.

    Frames stay where they are; the few numbers of every transition lie in arrays over all blocks,
    so that one indexing per array reads a batch's.

    Args:
      rule: how rows become transitions.
      length: core rows of the longest block.
    """

    def __init__(self, rule: TransitionRule, length: int) -> None:
        self._rule = rule
        self._places: dict[int, int] = {}
        self._held: list[BlockTransitions | None] = []
        self._free: list[int] = []
        self._start_tm1 = np.zeros((0, length), np.int32)
        self._start_t = np.zeros((0, length), np.int32)
        self._actions = np.zeros((0, length), np.int64)
        self._rewards = np.zeros((0, length), np.float32)
        self._discounts = np.zeros((0, length), np.float32)

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._places)

    def insert(self, block_id: int, block: Block) -> None:
        """Hold a block; ids only grow.

        Raises:
          ValueError: it was cut for a smaller stack, fewer steps or a greater length.
        """
        mapped = block_transitions(block, self._rule)
        if not self._free:
            self._grow()
        place, rows = self._free[-1], len(mapped.actions)
        # A stack that repeats its episode's first row is no run of rows: it has no start.
        self._start_tm1[place, :rows] = np.where(mapped.contiguous, mapped.rows_tm1[:, 0], -1)
        self._start_t[place, :rows] = mapped.rows_t[:, 0]
        self._actions[place, :rows] = mapped.actions
        self._rewards[place, :rows] = mapped.rewards
        self._discounts[place, :rows] = mapped.discounts
        self._places[block_id], self._held[place] = self._free.pop(), mapped

    def discard(self, below: int) -> None:
        """Let go of all blocks with smaller ids."""
        while self._places and (oldest := next(iter(self._places))) < below:
            place = self._places.pop(oldest)
            self._held[place] = None
            self._free.append(place)

    def gather(self, sample: Sample, ring: BatchRing) -> Batch:
        """Copy the sampled transitions out of their blocks.

        Raises:
          KeyError: a sampled block is not held.
        """
        places = [self._places[block_id] for block_id in sample.block_ids.tolist()]
        held = [block for place in places if (block := self._held[place]) is not None]
        at = places, sample.rows
        frames, depth = held[0].observations, self._rule.frame_stack
        s_tm1, s_t = ring.next((len(held), depth, *frames.shape[1:]), frames.dtype)
        starts = zip(self._start_tm1[at].tolist(), self._start_t[at].tolist(), strict=True)
        for i, (block, (tm1, t)) in enumerate(zip(held, starts, strict=True)):
            if tm1 < 0:
                row = sample.rows[i]
                s_tm1[i] = block.observations[block.rows_tm1[row]]
                s_t[i] = block.observations[block.rows_t[row]]
            else:
                s_tm1[i] = block.observations[tm1 : tm1 + depth]
                s_t[i] = block.observations[t : t + depth]
        actions, rewards, discounts = self._actions[at], self._rewards[at], self._discounts[at]
        sources = tuple(block.source for block in held)
        return Batch(s_tm1, actions, rewards, discounts, s_t, sample.weights, sample, sources)

    def _grow(self) -> None:
        """Double the places."""
        more = max(64, len(self._held))
        self._free += range(len(self._held) + more - 1, len(self._held) - 1, -1)
        self._held += [None] * more
        for name, array in list(vars(self).items()):
            if isinstance(array, np.ndarray):
                setattr(self, name, np.pad(array, ((0, more), (0, 0))))
