"""A planar lidar: exact ranges to walls, boxes and discs, and the heading of the widest gap.

Angles are counter-clockwise from straight ahead. Ranges are of rays without noise, from the
rover's middle, at most `RANGE_M`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.rover.rooms import Rooms

Float32s = NDArray[np.float32]

RAYS = 120
RANGE_M = 6.0
ANGLES = np.linspace(-np.pi, np.pi, RAYS, endpoint=False).astype(np.float32)
"""Of each ray; ray RAYS // 2 looks straight ahead."""

_SECTOR = 6  # Rays to either side that a gap must be free in: 18 degrees.
_AHEAD = (1.2 * np.abs(ANGLES)).astype(np.float32)  # Metres of room that a turn must be worth.
_AROUND = np.arange(RAYS)[:, None] + np.arange(-_SECTOR, _SECTOR + 1)
_AROUND %= RAYS


def directions(headings: Float32s) -> tuple[Float32s, Float32s]:
    """Cosine and sine (n, RAYS) of every ray of rovers with `headings` (n,), never quite 0."""
    angles = headings[:, None] + ANGLES
    cosine, sine = np.cos(angles), np.sin(angles)
    tiny = np.float32(1e-6)
    return np.where(abs(cosine) < tiny, tiny, cosine), np.where(abs(sine) < tiny, tiny, sine)


def scan(points: Float32s, cosine: Float32s, sine: Float32s, rooms: Rooms) -> Float32s:
    """Ranges (n, RAYS) in metres, within 0..RANGE_M.

    Args:
        points: (n, 2) where the rovers are.
        cosine, sine: (n, RAYS) as `directions` gives them.
        rooms: n rooms.
    """
    one = np.float32(1)
    inverse_x, inverse_y = (one / cosine)[:, None], (one / sine)[:, None]
    near, far = _slabs(points, inverse_x, inverse_y, rooms.boxes)
    to_boxes = np.where((near <= far) & (near >= 0), near, RANGE_M).min(axis=1)
    walls = np.concatenate([np.zeros_like(rooms.sizes), rooms.sizes], axis=1)[:, None]
    _, to_walls = _slabs(points, inverse_x, inverse_y, walls)
    to_discs = _discs(points, cosine[:, None], sine[:, None], rooms.discs)
    ranges: Float32s = np.minimum(np.minimum(to_boxes, to_discs), to_walls[:, 0])
    return np.minimum(ranges, np.float32(RANGE_M))


def _slabs(
    points: Float32s, inverse_x: Float32s, inverse_y: Float32s, boxes: Float32s
) -> tuple[Float32s, Float32s]:
    """Where each ray enters and leaves each box, (n, boxes, RAYS); enters behind leaving: never."""
    low = (boxes[..., :2] - points[:, None])[..., None]
    high = (boxes[..., 2:] - points[:, None])[..., None]
    x1, x2 = low[:, :, 0] * inverse_x, high[:, :, 0] * inverse_x
    y1, y2 = low[:, :, 1] * inverse_y, high[:, :, 1] * inverse_y
    near = np.maximum(np.minimum(x1, x2), np.minimum(y1, y2))
    far = np.minimum(np.maximum(x1, x2), np.maximum(y1, y2))
    return near, far


def _discs(points: Float32s, cosine: Float32s, sine: Float32s, discs: Float32s) -> Float32s:
    """Range (n, RAYS) at which each ray enters a disc, RANGE_M if it meets none."""
    apart = (discs[..., :2] - points[:, None])[..., None]
    x, y, radius = apart[:, :, 0], apart[:, :, 1], discs[..., 2, None]
    along = x * cosine + y * sine
    half_chord2 = along**2 - (x**2 + y**2 - radius**2)
    near = along - np.sqrt(np.maximum(half_chord2, 0))
    ranges: Float32s = np.where((half_chord2 > 0) & (near >= 0), near, RANGE_M).min(axis=1)
    return ranges


def widest_gap(ranges: Float32s) -> Float32s:
    """Heading (n,) in radians, within -pi..pi, of the sector that is free the farthest.

    A sector is 36 degrees wide and as free as its shortest range; one that lies ahead wins over
    one to the side that is little better.
    """
    free = ranges[:, _AROUND].min(axis=2)
    headings: Float32s = ANGLES[(free - _AHEAD).argmax(axis=1)]
    return headings
