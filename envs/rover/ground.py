"""What a rover knows of its ground: cells that lidar hit, cells it cleared, and the view of both.

Invariant: the grid reaches so far beyond every room that no view or hit ever leaves it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.rover.rooms import MAX_SIDE_M

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]

CELL_M = 1 / 16
VIEW_CELLS = 128  # 8 m: 4 m to every side.
OBSTACLE, CLEARED = 1, 2  # Bits of a cell.

_MARGIN_CELLS = int(np.ceil(VIEW_CELLS / 2**0.5)) + 2
_SIDE = int(MAX_SIDE_M / CELL_M) + 2 * _MARGIN_CELLS
_HIT_DEPTH_M = CELL_M / 4  # A hit counts for the cell behind the surface.
_OFFSETS = ((VIEW_CELLS - 1) / 2 - np.arange(VIEW_CELLS)).astype(np.float32)


class Ground:
    """Grids of `num` rovers, each in its room's coordinates.

    Args:
        num: rovers.
        reach_m: radius of the disc that a rover clears where it stands.
    """

    def __init__(self, num: int, reach_m: float) -> None:
        self._cells = np.zeros((num, _SIDE * _SIDE), np.uint8)
        span = int(np.ceil(reach_m / CELL_M)) + 1
        near = np.arange(-span, span + 1)
        self._near_row, self._near_column = (part.ravel() for part in np.meshgrid(near, near))
        self._reach2_cells = (reach_m / CELL_M) ** 2
        # Views are made one rover at a time in this memory, which stays in the cache.
        self._sum = np.empty((VIEW_CELLS, VIEW_CELLS), np.float32)
        self._columns = np.empty((VIEW_CELLS, VIEW_CELLS), np.int32)
        self._flat = np.empty((VIEW_CELLS, VIEW_CELLS), np.int32)
        self._seen = np.empty((VIEW_CELLS, VIEW_CELLS), np.uint8)

    def forget(self, rovers: Ids) -> None:
        """Make these rovers' grids blank."""
        self._cells[rovers] = 0

    def mark_hits(
        self, rovers: Ids, points: Floats, cosine: Floats, sine: Floats, ranges: Floats, seen: Bools
    ) -> None:
        """Mark what rays hit: directions and ranges (b, rays), `seen` (b, rays) bool."""
        depth = ranges + _HIT_DEPTH_M
        columns = _cells_of(points[:, :1] + depth * cosine)
        rows = _cells_of(points[:, 1:] + depth * sine)
        owner = np.broadcast_to(rovers[:, None], seen.shape)[seen]
        self._cells[owner, (rows * _SIDE + columns)[seen]] |= OBSTACLE

    def clear(self, rovers: Ids, points: Floats) -> NDArray[np.float32]:
        """Clear the discs around `points` (b, 2); the area (b,) in m2 that was not clear before."""
        place = points / CELL_M + _MARGIN_CELLS
        cell = place.astype(np.int64)
        columns = cell[:, :1] + self._near_column
        rows = cell[:, 1:] + self._near_row
        apart2 = (columns + 0.5 - place[:, :1]) ** 2 + (rows + 0.5 - place[:, 1:]) ** 2
        flat = rows * _SIDE + columns
        cells = self._cells[rovers[:, None], flat]
        new = (apart2 < self._reach2_cells) & (cells < CLEARED)
        self._cells[rovers[:, None], flat] = cells | (new * np.uint8(CLEARED))
        area_m2: NDArray[np.float32] = (new.sum(axis=1) * CELL_M**2).astype(np.float32)
        return area_m2

    def view(self, rovers: Ids, points: Floats, headings: Floats, out: Floats) -> None:
        """Write the bird's-eye views (b, 2, 128, 128) into `out`: obstacles, cleared ground.

        The rover is in the middle and looks up: row 0 is 4 m ahead, column 0 is 4 m to its left.
        """
        place = (points / CELL_M + _MARGIN_CELLS).astype(np.float32)
        cosine = np.cos(headings).astype(np.float32)[:, None]
        sine = np.sin(headings).astype(np.float32)[:, None]
        # A rotation is a sum of what the row gives and what the column gives.
        ahead = place[:, :, None] + _OFFSETS * np.stack([cosine, sine], 1)
        aside = _OFFSETS * np.stack([-sine, cosine], 1)
        for i, rover in enumerate(rovers):
            self._outer_sum(ahead[i, 0], aside[i, 0], self._columns)
            self._outer_sum(ahead[i, 1], aside[i, 1], self._flat)
            np.multiply(self._flat, _SIDE, out=self._flat)
            np.add(self._flat, self._columns, out=self._flat)
            np.take(self._cells[rover], self._flat, out=self._seen, mode="clip")
            np.bitwise_and(self._seen, OBSTACLE, out=out[i, 0], casting="unsafe")
            np.right_shift(self._seen, 1, out=out[i, 1], casting="unsafe")

    def _outer_sum(self, of_rows: Floats, of_columns: Floats, out: NDArray[np.int32]) -> None:
        np.add(of_rows[:, None], of_columns, out=self._sum)
        np.copyto(out, self._sum, casting="unsafe")

    def cleared(self, rover: int, points: Floats) -> Bools:
        """Whether each of `points` (..., 2) within the room lies on cleared ground."""
        columns, rows = _cells_of(points[..., 0]), _cells_of(points[..., 1])
        cleared: Bools = self._cells[rover, rows * _SIDE + columns] >= CLEARED
        return cleared


def _cells_of(lengths_m: Floats) -> Ids:
    return (lengths_m / CELL_M + _MARGIN_CELLS).astype(np.int64)
