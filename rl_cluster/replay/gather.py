"""The gather: sampled places in blocks become one batch of numpy arrays.

Invariant: blocks are only read, never written: they are zero-copy views of shared memory. What
comes out is in memory of its own, so a batch stays whole when its blocks are evicted, until its
memory's turn comes again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
from typing_extensions import TypeVar

from rl_cluster.replay.block import Block
from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import BlockTransitions, TransitionRule, block_transitions


class Array(Protocol):
    """Numbers in host memory (numpy) or on a device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""

    @property
    def dtype(self) -> Any:
        """Type of one number, in the words of its library."""


Frames = TypeVar("Frames", bound=Array, default=np.ndarray)
"""What a batch's observations are."""

Allocate = Callable[[tuple[int, ...], np.dtype], Frames]
"""Makes an array of a shape and dtype; its contents do not matter."""


def at_once() -> None:
    """Wait for nothing: what is in host memory is there."""


@dataclass(frozen=True)
class Batch(Generic[Frames]):
    """Transitions to learn from, in DQN Zoo's notation."""

    s_tm1: Frames
    """(B, stack, *obs_shape): observations before."""
    a_tm1: np.ndarray
    """(B,) int64: actions."""
    r_t: np.ndarray
    """(B,) float32: n-step rewards."""
    discount_t: np.ndarray
    """(B,) float32: discount of the bootstrap, 0 at terminal states."""
    s_t: Frames
    """(B, stack, *obs_shape): observations after."""
    weights: np.ndarray
    """(B,) float32: importance weights, at most 1."""
    sample: Sample
    """Where each came from, for its new priority."""
    sources: tuple[str, ...]
    """Who collected each."""
    wait: Callable[[], None] = at_once
    """Lets the caller's stream of a device wait until the observations are there; to be called
    before they are read."""

    @property
    def transitions(self) -> int:
        """B."""
        return len(self.a_tm1)

    def finite_rows(self) -> np.ndarray:
        """(B,) bool: transitions all of whose numbers are; on a device lie whole numbers only."""
        finite = np.ones(len(self.a_tm1), np.bool_)
        for array in (self.s_tm1, self.r_t, self.discount_t, self.s_t, self.weights):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                finite &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        return finite

    def check_valid(self) -> None:
        """Raise ValueError unless shapes and dtypes agree."""
        size = len(self.a_tm1)
        if self.s_tm1.shape != self.s_t.shape or self.s_tm1.dtype != self.s_t.dtype:
            raise ValueError(f"s_tm1 {self.s_tm1.shape} and s_t {self.s_t.shape} differ")
        for name in ("r_t", "discount_t", "weights"):
            array = getattr(self, name)
            if array.shape != (size,) or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, not float32({size},)")


class BatchRing(Generic[Frames]):
    """Memory for the observations of batches, used again in turn.

    Fresh memory for every batch takes longer to map, page by page, than to fill.

    Args:
      size: batches that may be in use at once.
      allocate: such as of page-locked memory, which a GPU reads by itself, or of a GPU's own.
    """

    def __init__(
        self,
        size: int,
        allocate: Allocate[Frames] = np.empty,  # type: ignore[assignment] # the default of Frames
    ) -> None:
        self._allocate = allocate
        self._pairs: deque[tuple[Any, tuple[Frames, Frames]] | None] = deque([None] * size)

    def next(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Frames, Frames]:
        """Two arrays for s_tm1 and s_t: those of `size` calls ago, where they fit."""
        kept, wanted = self._pairs.popleft(), (shape, dtype)
        if kept is None or kept[0] != wanted:
            kept = wanted, (self._allocate(shape, dtype), self._allocate(shape, dtype))
        self._pairs.append(kept)
        return kept[1]


class BlockSource(Protocol[Frames]):
    """The blocks that are drawn from, wherever their frames lie."""

    def insert(self, block_id: int, block: Block) -> None:
        """Hold a block; ids come in any order."""

    def discard(self, below: int) -> None:
        """Let go of all blocks with smaller ids."""

    def gather(self, sample: Sample, ring: BatchRing[Frames]) -> Batch[Frames]:
        """Copy the sampled transitions into the ring's next memory."""


class TransitionTable:
    """The few numbers of every transition of the blocks held, in arrays over all blocks.

    So one indexing per array reads a batch's. A subclass adds what else is known of a block, in
    arrays of its own, which grow with these.

    Args:
      rule: how rows become transitions.
      length: core rows of the longest block.
    """

    def __init__(self, rule: TransitionRule, length: int) -> None:
        self._rule = rule
        self._places: dict[int, int] = {}
        self._oldest: list[int] = []  # a heap of ids: older blocks may come later
        self._free: list[int] = []
        self._size = 0
        self._actions = np.zeros((0, length), np.int64)
        self._rewards = np.zeros((0, length), np.float32)
        self._discounts = np.zeros((0, length), np.float32)

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._places)

    def _put(self, block_id: int, mapped: BlockTransitions) -> int:
        """Write a block's numbers; return its place in all arrays."""
        if not self._free:
            self._grow(max(64, self._size))
        place, rows = self._free[-1], len(mapped.actions)
        self._actions[place, :rows] = mapped.actions
        self._rewards[place, :rows] = mapped.rewards
        self._discounts[place, :rows] = mapped.discounts
        self._places[block_id] = self._free.pop()
        heapq.heappush(self._oldest, block_id)
        return place

    def _drop(self, below: int) -> list[int]:
        """Forget blocks with smaller ids; return which they were."""
        dropped = []
        while self._oldest and self._oldest[0] < below:
            oldest = heapq.heappop(self._oldest)
            self._free.append(self._places.pop(oldest))
            dropped.append(oldest)
        return dropped

    def _grow(self, more: int) -> None:
        """Make so many more places."""
        self._free += range(self._size + more - 1, self._size - 1, -1)
        self._size += more
        for name, array in list(vars(self).items()):
            if isinstance(array, np.ndarray):
                grown = [(0, more)] + [(0, 0)] * (array.ndim - 1)
                setattr(self, name, np.pad(array, grown))


class MappedBlocks(TransitionTable):
    """Blocks whose frames stay where they are, in shared memory.

    Args:
      rule: how rows become transitions.
      length: core rows of the longest block.
    """

    def __init__(self, rule: TransitionRule, length: int) -> None:
        super().__init__(rule, length)
        self._held: dict[int, BlockTransitions] = {}
        self._start_tm1 = np.zeros((0, length), np.int32)
        self._start_t = np.zeros((0, length), np.int32)

    def insert(self, block_id: int, block: Block) -> None:
        """Hold a block; ids come in any order.

        Raises:
          ValueError: it was cut for a smaller stack, fewer steps or a greater length.
        """
        mapped = block_transitions(block, self._rule)
        place, rows = self._put(block_id, mapped), len(mapped.actions)
        # A stack that repeats its episode's first row is no run of rows: it has no start.
        self._start_tm1[place, :rows] = np.where(mapped.contiguous, mapped.rows_tm1[:, 0], -1)
        self._start_t[place, :rows] = mapped.rows_t[:, 0]
        self._held[block_id] = mapped

    def discard(self, below: int) -> None:
        """Let go of all blocks with smaller ids."""
        for block_id in self._drop(below):
            del self._held[block_id]

    def gather(self, sample: Sample, ring: BatchRing) -> Batch:
        """Copy the sampled transitions out of their blocks.

        Raises:
          KeyError: a sampled block is not held.
        """
        block_ids = sample.block_ids.tolist()
        held = [self._held[block_id] for block_id in block_ids]
        at = [self._places[block_id] for block_id in block_ids], sample.rows
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
