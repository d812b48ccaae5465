"""A sum tree over non-negative values: draw an index in proportion to its value in O(log n).

Invariant: every inner node is the sum of its two children, and every value is finite and not
negative; a value that is neither is refused whole, for one NaN would make every draw the same.
"""

from __future__ import annotations

import numpy as np


class SumTree:
    """Values of indices 0 … size-1, vectorized (Schaul et al. 2016, appendix B.2.1)."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: at least 1")
        self._depth = max(1, (size - 1).bit_length())
        self._leaves = 1 << self._depth
        self._nodes = np.zeros(2 * self._leaves, np.float64)
        self.size = size

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._nodes[1])

    def get(self, indices: np.ndarray) -> np.ndarray:
        """(k,) float64 values of (k,) indices."""
        values: np.ndarray = self._nodes[self._leaves + indices]
        return values

    def set(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set values of indices; where an index repeats, the last value stays.

        Raises:
          ValueError: a value is negative or not finite; nothing was set.
        """
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError("values must be finite and not negative; none was set")
        self._nodes[self._leaves + indices] = values
        nodes = np.unique((self._leaves + indices) >> 1)
        for _ in range(self._depth):
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]
            nodes = np.unique(nodes >> 1)

    def find(self, targets: np.ndarray) -> np.ndarray:
        """(k,) indices whose interval of the cumulative sum holds (k,) targets in [0, total).

        An index with value 0 is never found while the total is positive.
        """
        nodes = np.ones(len(targets), np.int64)
        rest = targets.astype(np.float64)
        for _ in range(self._depth):
            left = self._nodes[2 * nodes]
            # Rounding can push a target to its interval's end: never enter an empty side.
            right = (rest >= left) & (self._nodes[2 * nodes + 1] > 0)
            rest = np.where(right, rest - left, rest)
            nodes = 2 * nodes + right
        return nodes - self._leaves
