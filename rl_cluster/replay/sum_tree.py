"""A sum tree over non-negative values: draw an index in proportion to its value.

Three levels instead of log2(n): values lie in rows of 16, rows in groups of 16, and a draw goes
through the cumulative sums of all groups, of one group's rows, of one row's values. Each level is
a few numpy calls for a whole batch; a binary tree has some twenty levels. Invariant: every sum is
that of its parts, computed anew where a part changes, so nothing drifts; every value is finite and
not negative; a value that is neither is refused whole, for one NaN would make every draw the same.
"""

from __future__ import annotations

import numpy as np

_WIDTH = 16


class SumTree:
    """Values of indices 0 … size-1, vectorized (as Schaul et al. 2016, appendix B.2.1)."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: at least 1")
        groups = -(-size // _WIDTH**2)
        self._values = np.zeros((groups * _WIDTH, _WIDTH))
        self._rows = np.zeros((groups, _WIDTH))
        self._groups = np.zeros(groups)
        self.size = size

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._groups.sum())

    def get(self, indices: np.ndarray) -> np.ndarray:
        """(k,) float64 values of (k,) indices."""
        values: np.ndarray = self._values.reshape(-1)[indices]
        return values

    def set(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set values of indices; where an index repeats, the last value stays.

        Raises:
          ValueError: a value is negative or not finite; nothing was set.
        """
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError("values must be finite and not negative; none was set")
        self._values.reshape(-1)[indices] = values
        rows = np.unique(indices // _WIDTH)
        self._rows.reshape(-1)[rows] = self._values[rows].sum(1)
        groups = np.unique(rows // _WIDTH)
        self._groups[groups] = self._rows[groups].sum(1)

    def find(self, targets: np.ndarray) -> np.ndarray:
        """(k,) indices whose interval of the cumulative sum holds (k,) targets in [0, total).

        An index with value 0 is never found while the total is positive.
        """
        ends = self._groups.cumsum()
        inside = np.minimum(targets, np.nextafter(ends[-1], 0))
        group = np.searchsorted(ends, inside, side="right")
        row, rest = _descend(self._rows[group], inside - (ends - self._groups)[group])
        row += group * _WIDTH
        index, _ = _descend(self._values[row], rest)
        found: np.ndarray = row * _WIDTH + index
        return found


def _descend(parts: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k,) which of its own (k, w) parts each target falls into, and (k,) how far into it."""
    ends = parts.cumsum(1)
    # Rounding can push a target out of its interval: never beyond the last part that is not 0,
    # and never before the first.
    inside = np.clip(targets, 0.0, np.nextafter(ends[:, -1], 0))
    index = (ends <= inside[:, None]).sum(1)
    every = np.arange(len(parts))
    return index, inside - (ends[every, index] - parts[every, index])
