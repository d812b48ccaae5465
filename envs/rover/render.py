"""A picture of one rover's room, for people.

White floor, dark walls and obstacles, green cleared ground, pale blue what the lidar sees now,
red where it hits; the rover is an orange disc with a black nose. North (y) is up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.rover import lidar
from envs.rover.rooms import MAX_SIDE_M
from envs.rover.world import BODY_RADIUS_M, RoverWorld

PIXELS_M = 40
SIDE_PIXELS = int((MAX_SIDE_M + 0.5) * PIXELS_M)  # A margin of a quarter of a metre.

SOLID = (60, 60, 70)
FLOOR = (250, 250, 250)
SEEN = (205, 225, 250)
CLEARED = (150, 210, 140)
CLEARED_SEEN = (120, 190, 150)
HIT = (220, 40, 40)
BODY = (245, 150, 30)
NOSE = (20, 20, 20)
_HIT_M = 0.06
_NOSE_M = 0.09

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]


def picture(world: RoverWorld, rover: int) -> NDArray[np.uint8]:
    """The room of `rover` from above: uint8 (500, 500, 3), the room in the middle."""
    points = _pixel_points(world.rooms.sizes[rover])
    solid = _solid(world, rover, points)
    seen = _seen(world, rover, points)
    inside = np.clip(points, 0, world.rooms.sizes[rover])
    cleared = world.ground.cleared(rover, inside)
    image = np.full((*seen.shape, 3), FLOOR, np.uint8)
    image[seen] = SEEN
    image[cleared] = CLEARED
    image[cleared & seen] = CLEARED_SEEN
    image[solid] = SOLID
    _draw_hits(image, world, rover)
    middle, heading = world.points[rover], world.headings[rover]
    ahead = np.array([np.cos(heading), np.sin(heading)])
    image[_disc(points, middle, BODY_RADIUS_M)] = BODY
    image[_disc(points, middle + ahead * (BODY_RADIUS_M - _NOSE_M), _NOSE_M)] = NOSE
    return image


def _pixel_points(size: NDArray[np.float32]) -> Floats:
    """Where each pixel lies in the room, (side, side, 2) in metres."""
    along = (np.arange(SIDE_PIXELS) + 0.5 - SIDE_PIXELS / 2) / PIXELS_M
    x, y = np.meshgrid(along + size[0] / 2, -along + size[1] / 2)
    return np.stack([x, y], axis=-1)


def _solid(world: RoverWorld, rover: int, points: Floats) -> Masks:
    size = world.rooms.sizes[rover]
    solid: Masks = ((points < 0) | (points > size)).any(axis=-1)
    for box in world.rooms.boxes[rover]:
        solid |= ((points >= box[:2]) & (points <= box[2:])).all(axis=-1)
    for disc in world.rooms.discs[rover]:
        solid |= _disc(points, disc[:2], float(disc[2]))
    return solid


def _seen(world: RoverWorld, rover: int, points: Floats) -> Masks:
    """Pixels nearer than the range of the ray that passes them."""
    apart = points - world.points[rover]
    angles = np.arctan2(apart[..., 1], apart[..., 0]) - world.headings[rover]
    rays = np.rint((angles / (2 * np.pi) + 0.5) * lidar.RAYS).astype(np.int64) % lidar.RAYS
    seen: Masks = np.hypot(apart[..., 0], apart[..., 1]) < world.ranges[rover][rays]
    return seen


def _draw_hits(image: NDArray[np.uint8], world: RoverWorld, rover: int) -> None:
    """A small square at the end of every ray that met something."""
    ranges, angles = world.ranges[rover], world.headings[rover] + lidar.ANGLES
    met = ranges < lidar.RANGE_M
    ends = np.stack([np.cos(angles), np.sin(angles)], axis=1) * ranges[:, None]
    from_middle = (world.points[rover] + ends)[met] - world.rooms.sizes[rover] / 2
    columns, rows = (from_middle * (PIXELS_M, -PIXELS_M) + SIDE_PIXELS / 2).astype(np.int64).T
    half = round(_HIT_M * PIXELS_M / 2)
    for shift in np.ndindex(2 * half + 1, 2 * half + 1):
        image[rows + shift[0] - half, columns + shift[1] - half] = HIT


def _disc(points: Floats, middle: NDArray[np.floating], radius: float) -> Masks:
    inside: Masks = ((points - middle) ** 2).sum(axis=-1) < radius**2
    return inside
