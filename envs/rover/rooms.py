"""Rooms with obstacles: how they are drawn at random, and how far a point is from anything solid.

A room is the rectangle from (0, 0) to its size, with axis-parallel boxes (furniture, and
partitions with a doorway) and discs (posts, stones) in it. Lengths in metres.
Invariant: every room has the same number of boxes and discs; those it lacks lie far away, out
of the lidar's reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

MIN_SIDE_M, MAX_SIDE_M = 9.0, 12.0
BOXES, DISCS = 7, 4
PARTITION_PROBABILITY = 0.5
PARTITION_M, DOORWAY_M = 0.2, 1.8
START_CLEARANCE_M = 0.8
FAR_M = 1e4
_CANDIDATES = 64


@dataclass(frozen=True)
class Rooms:
    """The rooms of `n` rovers, one each.

    Attributes:
        sizes: (n, 2) float32, from 0 to here along x and y.
        boxes: (n, BOXES, 4) float32, low x, low y, high x, high y.
        discs: (n, DISCS, 3) float32, centre x, y, and radius.
    """

    sizes: NDArray[np.float32]
    boxes: NDArray[np.float32]
    discs: NDArray[np.float32]

    @classmethod
    def empty(cls, num: int) -> Rooms:
        """Room for `num` rooms, still to be drawn."""
        return cls(
            np.zeros((num, 2), np.float32),
            np.zeros((num, BOXES, 4), np.float32),
            np.zeros((num, DISCS, 3), np.float32),
        )

    def redraw(self, index: int, rng: np.random.Generator) -> Floats:
        """Draw room `index` anew; a free place to start in, (2,)."""
        size = rng.uniform(MIN_SIDE_M, MAX_SIDE_M, 2)
        self.sizes[index] = size
        self.boxes[index] = _boxes(size, rng)
        self.discs[index] = _discs(size, rng)
        points = rng.uniform(START_CLEARANCE_M, size - START_CLEARANCE_M, (_CANDIDATES, 2))
        room = np.full(_CANDIDATES, index)
        free = self.clearance_m(points, room)
        # The first that is free enough; if none is, the freest.
        start: Floats = points[np.minimum(free, START_CLEARANCE_M).argmax()]
        return start

    def take(self, rovers: NDArray[np.int64]) -> Rooms:
        """The rooms of these rovers."""
        return Rooms(self.sizes[rovers], self.boxes[rovers], self.discs[rovers])

    def clearance_m(self, points: Floats, rooms: NDArray[np.int64]) -> Floats:
        """Distance (b,) from each of `points` (b, 2) to the nearest solid thing of its room.

        Negative outside the room or within a disc; 0 within a box.
        """
        sizes, boxes, discs = self.sizes[rooms], self.boxes[rooms], self.discs[rooms]
        to_walls = np.minimum(points, sizes - points).min(axis=-1)
        middle = points[:, None]
        outside = np.maximum(boxes[..., :2] - middle, middle - boxes[..., 2:])
        to_boxes = np.hypot(*np.moveaxis(np.maximum(outside, 0), -1, 0)).min(axis=-1)
        apart = discs[..., :2] - middle
        to_discs = (np.hypot(apart[..., 0], apart[..., 1]) - discs[..., 2]).min(axis=-1)
        nearest: Floats = np.minimum(to_walls, np.minimum(to_boxes, to_discs))
        return nearest


def _boxes(size: Floats, rng: np.random.Generator) -> Floats:
    """(BOXES, 4): in half of the rooms a partition (two boxes), and three to five boxes."""
    boxes = np.full((BOXES, 4), FAR_M)
    count = int(rng.integers(3, BOXES - 1))
    half = rng.uniform(0.2, 0.6, (count, 2))
    middle = rng.uniform(0, size, (count, 2))
    boxes[2 : 2 + count] = np.concatenate([middle - half, middle + half], axis=1)
    if rng.random() < PARTITION_PROBABILITY:
        boxes[:2] = _partition(size, rng)
    return boxes


def _partition(size: Floats, rng: np.random.Generator) -> Floats:
    """(2, 4): a wall across the room along x or y, with a doorway."""
    along = int(rng.integers(2))
    across = 1 - along
    place = size[across] * rng.uniform(0.35, 0.65)
    door = rng.uniform(0, size[along] - DOORWAY_M)
    walls = np.zeros((2, 4))
    walls[:, across], walls[:, 2 + across] = place, place + PARTITION_M
    walls[:, along] = 0, door + DOORWAY_M
    walls[:, 2 + along] = door, size[along]
    return walls


def _discs(size: Floats, rng: np.random.Generator) -> Floats:
    """(DISCS, 3): two to four discs."""
    discs = np.full((DISCS, 3), FAR_M)
    discs[:, 2] = 0.1
    count = int(rng.integers(2, DISCS + 1))
    discs[:count, :2] = rng.uniform(0, size, (count, 2))
    discs[:count, 2] = rng.uniform(0.15, 0.45, count)
    return discs
