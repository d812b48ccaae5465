"""References to the blocks that a replay keeps, in the order in which they came.

Invariant: arrival numbers only grow, so whoever names the last one that it heard of is told each
later block once, also those that come back from the journal after newer ones.
"""

from __future__ import annotations

from rl_cluster.cluster.messages import BlockRef


class Arrivals:
    """Blocks by id and by arrival."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, BlockRef]] = {}
        self._number_of: dict[int, int] = {}
        self._oldest, self._next = 0, 0

    def keep(self, block_id: int, ref: BlockRef) -> None:
        """Hold a block from now on."""
        self._kept[self._next] = block_id, ref
        self._number_of[block_id] = self._next
        self._next += 1

    def let_go(self, block_id: int) -> None:
        """Drop a block's reference.

        Raises:
          KeyError: it is not held.
        """
        del self._kept[self._number_of.pop(block_id)]

    def newest(self, most: int) -> list[BlockRef]:
        """References to the blocks that came last, at most so many."""
        return [ref for _, ref in list(self._kept.values())[-most:]]

    def after(self, known: int) -> tuple[tuple[int, int, BlockRef], ...]:
        """Number, block id and reference of all that came after arrival `known`; -1: of all."""
        while self._oldest < self._next and self._oldest not in self._kept:
            self._oldest += 1
        unknown = range(max(self._oldest, known + 1), self._next)
        return tuple((number, *self._kept[number]) for number in unknown if number in self._kept)
