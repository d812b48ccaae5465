"""Sequences: runs of consecutive rows around sampled ones, for agents with a memory.

A sequence has T = burn_in + unroll + n_step rows; the sampled row is the first that is trained.
Invariant: all rows of a sequence come from one block, so none joins two messages or environments.
Where the block has no such row the sequence says so (`valid`) and holds zeros. Blocks are only
read; what comes out is in memory of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import BatchRing, at_once
from rl_cluster.replay.index import Sample

_FLOAT16_EXPONENT = np.uint16(0x7C00)


@dataclass(frozen=True)
class SequenceRule:
    """Which rows around a sampled one are read."""

    burn_in: int
    """Rows before it, which only fill a memory."""
    unroll: int
    """Rows that are trained, from the sampled one on."""
    n_step: int
    """Rows behind those, for their returns."""

    @property
    def rows(self) -> int:
        """T: rows of one sequence."""
        return self.burn_in + self.unroll + self.n_step


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences to learn from: B runs of T rows."""

    observations: np.ndarray
    """(B, T, *obs_shape), as the blocks have them."""
    actions: np.ndarray
    """(B, T, *action_shape), taken at the row."""
    rewards: np.ndarray
    """(B, T) float32, arrived with the row."""
    terminal: np.ndarray
    """(B, T) bool: nothing can be earned after this row."""
    ends: np.ndarray
    """(B, T) bool: the row ended its episode."""
    valid: np.ndarray
    """(B, T) bool: the block has this row."""
    weights: np.ndarray
    """(B,) float32: importance weights, at most 1."""
    trained: np.ndarray
    """(B, unroll) bool: steps that start at the trained rows; the others are no steps."""
    sample: Sample
    """Where each came from, for its new priority."""
    sources: tuple[str, ...]
    """Who collected each."""
    wait: Callable[[], None] = at_once
    """As a batch of transitions has it: what is in host memory is there."""

    @property
    def transitions(self) -> int:
        """Steps that are trained."""
        return int(self.trained.sum())

    def finite_rows(self) -> np.ndarray:
        """(B,) bool: sequences all of whose numbers are finite."""
        finite: np.ndarray = np.isfinite(self.weights)
        for array in (self.observations, self.actions, self.rewards):
            finite &= _finite(array).reshape(len(array), -1).all(1)
        return finite


@dataclass(frozen=True)
class _Rows:
    """The few numbers of a block's rows, beside its frames."""

    block: Block
    ends: np.ndarray
    """(rows,) bool."""
    starts: np.ndarray
    """(rows,) bool: a step leads from this row to the next, which the block has."""


class SequenceBlocks:
    """Blocks whose frames stay where they are, in shared memory.

    Args:
      rule: which rows around a sampled one are read.
    """

    def __init__(self, rule: SequenceRule) -> None:
        self._rule = rule
        self._held: dict[int, _Rows] = {}
        self._oldest: list[int] = []  # a heap of ids: older blocks may come later

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._held)

    def insert(self, block_id: int, block: Block) -> None:
        """Hold a block; ids come in any order.

        Raises:
          ValueError: it has no row behind its core, so its last step would have no end.
        """
        ends = block.terminated | block.truncated
        starts = ~ends
        starts[-1] = False
        core = slice(block.context, block.context + block.core)
        if not np.array_equal(starts[core], block.starts):
            raise ValueError(
                f"block {block.sequence} of {block.source} has a step from its last row: "
                "it needs a row behind its core"
            )
        self._held[block_id] = _Rows(block, ends, starts)
        heapq.heappush(self._oldest, block_id)

    def discard(self, below: int) -> None:
        """Let go of all blocks with smaller ids."""
        while self._oldest and self._oldest[0] < below:
            del self._held[heapq.heappop(self._oldest)]

    def gather(self, sample: Sample, ring: BatchRing) -> SequenceBatch:
        """Copy the sampled sequences out of their blocks.

        Args:
          ring: observations go into the first array of its next pair; the second stays untouched,
            and untouched memory is never mapped.

        Raises:
          KeyError: a sampled block is not held.
        """
        held = [self._held[block_id] for block_id in sample.block_ids.tolist()]
        sources = tuple(rows.block.source for rows in held)
        batch = self._empty(held[0].block, sample, sources, ring)
        for i, (rows, core_row) in enumerate(zip(held, sample.rows.tolist(), strict=True)):
            self._copy(rows, rows.block.context + core_row, batch, i)
        return batch

    def _empty(
        self, like: Block, sample: Sample, sources: tuple[str, ...], ring: BatchRing
    ) -> SequenceBatch:
        size, length = len(sample.rows), self._rule.rows
        frames, actions = like.observations, like.actions
        return SequenceBatch(
            observations=ring.next((size, length, *frames.shape[1:]), frames.dtype)[0],
            actions=np.zeros((size, length, *actions.shape[1:]), actions.dtype),
            rewards=np.zeros((size, length), np.float32),
            terminal=np.zeros((size, length), np.bool_),
            ends=np.zeros((size, length), np.bool_),
            valid=np.zeros((size, length), np.bool_),
            weights=sample.weights,
            trained=np.zeros((size, self._rule.unroll), np.bool_),
            sample=sample,
            sources=sources,
        )

    def _copy(self, rows: _Rows, row: int, batch: SequenceBatch, i: int) -> None:
        """Write the sequence whose first trained row is `row` into place `i`."""
        rule, block = self._rule, rows.block
        first, total = row - rule.burn_in, len(block.observations)
        source = slice(max(0, first), min(total, first + rule.rows))
        place = slice(source.start - first, source.stop - first)
        batch.observations[i, : place.start] = 0
        batch.observations[i, place.stop :] = 0
        batch.observations[i, place] = block.observations[source]
        batch.actions[i, place] = block.actions[source]
        batch.rewards[i, place] = block.rewards[source]
        batch.terminal[i, place] = block.terminated[source]
        batch.ends[i, place] = rows.ends[source]
        batch.valid[i, place] = True
        trained = rows.starts[row : row + rule.unroll]
        batch.trained[i, : len(trained)] = trained


def _finite(array: np.ndarray) -> np.ndarray:
    """Elementwise; of float16 by its bits, as numpy's own way takes many times as long."""
    if array.dtype == np.float16:
        bits = array.view(np.uint16) & _FLOAT16_EXPONENT
        finite: np.ndarray = bits != _FLOAT16_EXPONENT
    else:
        finite = np.isfinite(array)
    return finite
