"""The replay index: what is kept, how likely each is to be drawn, which block goes next.

The index knows blocks by number and never holds their data. Invariants: priorities are those of
live transitions only (rows that start none have 0) and are float32 numbers, so that a checkpoint
keeps them bit for bit; the ids of all blocks lie within a window as long as there are places, and
the oldest leave when it moves on; a priority that arrives for a block which has left changes
nothing; no two live blocks were cut from the same place of the same message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.sum_tree import SumTree

MIN_PRIORITY = 1e-3
"""Added to |TD error|, so that no transition is lost for good (Schaul et al. 2016, eq. 1)."""


@dataclass(frozen=True)
class Sample:
    """Places drawn from the index."""

    block_ids: np.ndarray
    """(B,) int64."""
    rows: np.ndarray
    """(B,) int64: core row within the block."""
    weights: np.ndarray
    """(B,) float32: importance weights (N P(i))^-β over their maximum."""

    def at(self, chosen: np.ndarray) -> Sample:
        """Some of them; `chosen` is (B,) bool."""
        return Sample(self.block_ids[chosen], self.rows[chosen], self.weights[chosen])


class ReplayIndex:
    """Proportional prioritization (Schaul et al. 2016) over a queue of blocks."""

    def __init__(
        self,
        capacity_transitions: int,
        block_length: int,
        priority_exponent: float,
        rng: np.random.Generator,
    ) -> None:
        self._length = block_length
        self.places = max(2, -(-capacity_transitions // block_length))
        """Blocks kept at most."""
        self._exponent = priority_exponent
        self._rng = rng
        self._tree = SumTree(self.places * block_length)
        self._ids = np.full(self.places, -1, np.int64)
        self._born = np.zeros(self.places, np.int64)
        self._order: deque[tuple[int, BlockInfo]] = deque()
        self._messages: set[str] = set()
        self._max_priority = 1.0
        self._schema: str | None = None
        self.inserted_transitions = 0
        self.transitions = 0
        self.nbytes = 0

    @property
    def fill(self) -> float:
        """Share of the block places in use."""
        return len(self._order) / self.places

    def holds(self, message: str) -> bool:
        """Whether a live block is of this `message`; never of "", which names none."""
        return message in self._messages

    def insert(self, block_id: int, info: BlockInfo) -> int | None:
        """Add a block under an id above all others, from 0; it gets the greatest priority seen.

        Returns:
          The newest id that it pushed out, if any: all blocks with ids up to that are gone.

        Raises:
          ValueError: its schema differs from the first block's, it is longer than a place, a live
            block has its message, or the id is not above the newest.
        """
        if self._order and block_id <= self._order[-1][0]:
            raise ValueError(f"block id {block_id} is not above {self._order[-1][0]}")
        self._check_fits(info)
        evicted = None
        while self._order and self._order[0][0] <= block_id - self.places:
            evicted = self._evict()
        self._order.append((block_id, info))
        self._hold(block_id, info, self.inserted_transitions, info.starts * self._max_priority)
        self.inserted_transitions += info.transitions
        return evicted

    def prepend(self, block_id: int, info: BlockInfo, priorities: np.ndarray | None) -> bool:
        """Add a block that is older than all others, as a resume finds it; nothing is pushed out.

        Args:
          block_id: below all others; ids in between may be missing.
          priorities: (core,) float32 as `priorities` gave them; None: the greatest seen.

        Returns:
          Whether it found a place: not where the newest block is as many ids ahead as there are
          places, and so not for any older block either.

        Raises:
          ValueError: as in `insert`, the id is not below the oldest, or a priority is negative or
            not finite; nothing was changed.
        """
        if self._order and block_id >= self._order[0][0]:
            raise ValueError(f"block id {block_id} is not below {self._order[0][0]}")
        if self._order and block_id <= self._order[-1][0] - self.places:
            return False
        self._check_fits(info)
        values = self._max_priority if priorities is None else priorities
        next_born = self.inserted_transitions
        if self._order:
            next_born = int(self._born[self._order[0][0] % self.places])
        self._hold(block_id, info, next_born - info.transitions, info.starts * values)
        self._order.appendleft((block_id, info))
        return True

    def _hold(self, block_id: int, info: BlockInfo, born: int, priorities: np.ndarray) -> None:
        slot = block_id % self.places
        values = np.zeros(self._length)
        values[: len(priorities)] = priorities
        self._tree.set(slot * self._length + np.arange(self._length), values)
        self._ids[slot] = block_id
        self._born[slot] = born
        if info.message:
            self._messages.add(info.message)
        self.transitions += info.transitions
        self.nbytes += info.nbytes

    def sample(self, size: int, importance_exponent: float) -> Sample:
        """Draw `size` transitions in proportion to their priorities, stratified.

        Raises:
          ValueError: the index is empty.
        """
        if self._tree.total <= 0:
            raise ValueError("the replay index is empty: nothing to sample")
        strata = (np.arange(size) + self._rng.random(size)) / size
        leaves = self._tree.find(strata * self._tree.total)
        probabilities = self._tree.get(leaves) / self._tree.total
        weights = (self.transitions * probabilities) ** -importance_exponent
        weights = (weights / weights.max()).astype(np.float32)
        return Sample(self._ids[leaves // self._length], leaves % self._length, weights)

    def update_priorities(self, sample: Sample, td_errors: np.ndarray) -> None:
        """Set priorities to (|δ| + ε)^α for the sampled transitions that are still kept.

        Raises:
          ValueError: a TD error is not finite; nothing was changed.
        """
        if not np.isfinite(td_errors).all():
            raise ValueError("TD errors must be finite; no priority was changed")
        slots = sample.block_ids % self.places
        live = self._ids[slots] == sample.block_ids
        values = (np.abs(td_errors[live]) + MIN_PRIORITY) ** self._exponent
        values = values.astype(np.float32)
        if live.any():
            self._tree.set(slots[live] * self._length + sample.rows[live], values)
            self._max_priority = max(self._max_priority, float(values.max()))

    def ages(self, sample: Sample) -> np.ndarray:
        """(B,) int64: transitions inserted since each sampled one."""
        ages: np.ndarray = self.inserted_transitions - self._born[sample.block_ids % self.places]
        return ages

    def priorities(self) -> tuple[np.ndarray, np.ndarray]:
        """(k,) int64 ids of all blocks, oldest first, and (k, length) float32 of their rows."""
        ids = np.array([block_id for block_id, _ in self._order], np.int64)
        leaves = self._tree.get(np.arange(self.places * self._length)).astype(np.float32)
        return ids, leaves.reshape(self.places, self._length)[ids % self.places]

    def state(self) -> dict[str, Any]:
        """JSON state of the random draws, for a checkpoint."""
        return {"rng": self._rng.bit_generator.state, "max_priority": self._max_priority}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the random draws of an earlier index."""
        self._rng.bit_generator.state = state["rng"]
        self._max_priority = float(np.float32(state["max_priority"]))

    def check_valid(self) -> None:
        """Raise ValueError unless counters, places and priorities agree."""
        leaves = self._tree.get(np.arange(self.places * self._length)).reshape(self.places, -1)
        live = [block_id for block_id, _ in self._order]
        if set(live) != set(self._ids[self._ids >= 0].tolist()):
            raise ValueError("places and queue name different blocks")
        if live and (sorted(live) != live or live[-1] - live[0] >= self.places):
            raise ValueError(f"ids from {live[0]} to {live[-1]} in {self.places} places")
        messages = [info.message for _, info in self._order if info.message]
        if len(messages) != len(self._messages) or set(messages) != self._messages:
            raise ValueError("messages of the live blocks and those known differ")
        if int((leaves > 0).sum()) != self.transitions:
            raise ValueError("transitions with a priority and the counter differ")
        if not np.isclose(leaves.sum(), self._tree.total):
            raise ValueError("the tree's root is not the sum of its leaves")

    def _check_fits(self, info: BlockInfo) -> None:
        if len(info.starts) > self._length:
            raise ValueError(
                f"block {info.sequence} of {info.source} has {len(info.starts)} core rows; "
                f"this index takes {self._length}"
            )
        self._schema = self._schema or info.schema
        if info.schema != self._schema:
            raise ValueError(
                f"block {info.sequence} of {info.source} holds {info.schema}; this replay holds "
                f"{self._schema}: it belongs to another task"
            )
        if info.message in self._messages:
            raise ValueError(
                f"block {info.sequence} of {info.source} came twice: message {info.message} is "
                "live; ask `holds` before"
            )

    def _evict(self) -> int:
        block_id, info = self._order.popleft()
        slot = block_id % self.places
        self._tree.set(slot * self._length + np.arange(self._length), np.zeros(self._length))
        self._ids[slot] = -1
        self._messages.discard(info.message)
        self.transitions -= info.transitions
        self.nbytes -= info.nbytes
        return block_id
