"""The simulation of tracked rovers: motion, contact, cleared ground, rewards, episodes.

Plain numpy over all rovers at once. One step is 1/30 s.
Invariants: a rover's middle never comes nearer than `BODY_RADIUS_M` to anything solid; episode k
of a rover with seed s is a function of (s, k) and of its own actions, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.rover import lidar
from envs.rover.ground import VIEW_CELLS, Ground
from envs.rover.rooms import Rooms

Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ids = NDArray[np.int64]

BEV_SHAPE = (2, VIEW_CELLS, VIEW_CELLS)
BEV_SIZE = 2 * VIEW_CELLS * VIEW_CELLS
PROPRIO = 6
ACTIONS = 2
ROW = BEV_SIZE + PROPRIO
"""Numbers of a flat observation: the view in C order, then proprioception."""

STEP_S = 1 / 30
EPISODE_STEPS = 450  # 15 s.
STUCK_STEPS = 60  # Steps of one contact that end an episode.
MAX_COLLISIONS = 10  # Of an episode; the next one ends it.

BODY_RADIUS_M = 0.25  # Of the body, and of the disc of ground that it clears.
MAX_SPEED_M_S = 1.0
TRACK_M = 0.8  # Between the tracks, twice what it is: they slip when turning.
MAX_TURN_RAD_S = 2 * MAX_SPEED_M_S / TRACK_M
CONTACT_M = 0.05  # A contact lasts until the rover is this far away.
DEAD_ZONE = 0.1  # Commands nearer to 0 do not move a track.
_TRACK_LAG_S = 0.15
_TRACK_GAIN = 1 - np.exp(-STEP_S / _TRACK_LAG_S)

GROUND_REWARD = 0.6  # For what a step straight ahead at full speed clears at most.
FORWARD_REWARD = 0.3  # For the speed itself, backwards the same amount less.
COLLISION_REWARD = -0.5
BLOCKED_REWARD = -0.1  # For each step that something solid stopped.
FAILURE_REWARD = -1.0  # Of the step that ends an episode before its time.
_FULL_STEP_M2 = MAX_SPEED_M_S * STEP_S * 2 * BODY_RADIUS_M


class StepResult(NamedTuple):
    """What a step of `b` rovers gave.

    Attributes:
        rewards: (b,) float32 in [-1, 1].
        dones: (b,) bool; the episode ended: `reset` the rover before its next step.
        driven: (b, 2) float32; the track commands after the dead zone.
        collisions: (b,) bool; a contact began.
        ground_m2: (b,) float32; newly cleared.
        truncated: (b,) bool; done, because the time was up.
    """

    rewards: Float32s
    dones: Bools
    driven: Float32s
    collisions: Bools
    ground_m2: Float32s
    truncated: Bools


class RoverWorld:
    """`num` rovers, each alone in its room.

    Args:
        num: rovers.
        seeds: one per rover; fixes its rooms and starting places.

    Attributes:
        episode_steps: (num,) int64; steps since the rover's last reset.
        episodes: (num,) int64; episodes started.
        points: (num, 2) float32 in metres, headings: (num,) float32 in radians; where they are.
        ranges: (num, lidar.RAYS) float32 in metres; the last scans.
        rooms, ground: what is there, and what the rovers know of it.
    """

    def __init__(self, num: int, seeds: Sequence[int]) -> None:
        if num < 1 or len(seeds) != num:
            raise ValueError(f"want at least 1 rover and one seed each, got {num} and {seeds}")
        self._seeds = list(seeds)
        self.rooms = Rooms.empty(num)
        self.ground = Ground(num, BODY_RADIUS_M)
        self.points = np.zeros((num, 2), np.float32)
        self.headings = np.zeros(num, np.float32)
        self.ranges = np.zeros((num, lidar.RAYS), np.float32)
        self.episode_steps = np.zeros(num, np.int64)
        self.episodes = np.zeros(num, np.int64)
        self._tracks_m_s = np.zeros((num, 2), np.float32)
        self._driven = np.zeros((num, 2), np.float32)
        self._contact_steps = np.zeros(num, np.int64)
        self._collisions = np.zeros(num, np.int64)
        self._everyone = np.arange(num)
        self.reset()

    def reset(self, mask: Bools | None = None) -> None:
        """Start a new episode, in a new room, for the rovers in `mask` (num,), or for all."""
        rovers = self._everyone if mask is None else np.flatnonzero(mask)
        for rover in rovers:
            rng = np.random.default_rng([self._seeds[rover], int(self.episodes[rover])])
            self.points[rover] = self.rooms.redraw(int(rover), rng)
            self.headings[rover] = rng.uniform(-np.pi, np.pi)
        self.episodes[rovers] += 1
        for of_episode in (self.episode_steps, self._contact_steps, self._collisions):
            of_episode[rovers] = 0
        self._tracks_m_s[rovers] = 0
        self._driven[rovers] = 0
        self.ground.forget(rovers)
        self.ground.clear(rovers, self.points[rovers])
        self._scan(rovers)

    def step(self, actions: NDArray[Any], rovers: Ids | None = None) -> StepResult:
        """Drive for 1/30 s.

        Args:
            actions: (b, 2) left and right track command; beyond [-1, 1] they are cut.
            rovers: (b,) different ones, none with a finished episode; None: all, in order.

        Raises:
            ValueError: for an action of another shape, or not finite.
        """
        ids = self._everyone if rovers is None else rovers
        self._driven[ids] = driven = _driven(actions, len(ids))
        forward_m_s, clearance_m = self._move(ids, driven)
        blocked = clearance_m < BODY_RADIUS_M
        collisions = self._note_contact(ids, blocked, clearance_m)
        self.episode_steps[ids] += 1
        ground_m2 = self.ground.clear(ids, self.points[ids])
        self._scan(ids)
        failed = self._contact_steps[ids] >= STUCK_STEPS
        failed |= self._collisions[ids] > MAX_COLLISIONS
        rewards = _rewards(ground_m2, forward_m_s, collisions, blocked, failed)
        truncated = ~failed & (self.episode_steps[ids] >= EPISODE_STEPS)
        return StepResult(rewards, failed | truncated, driven, collisions, ground_m2, truncated)

    def observe(self, rovers: Ids | None = None) -> tuple[Float32s, Float32s]:
        """Views (b, 2, 128, 128) float32, each 0 or 1, and proprioception (b, 6) float32."""
        rows = self.observe_rows(rovers)
        return rows[:, :BEV_SIZE].reshape(-1, *BEV_SHAPE), rows[:, BEV_SIZE:]

    def observe_rows(self, rovers: Ids | None = None) -> Float32s:
        """Flat observations (b, ROW) float32, in fresh memory."""
        ids = self._everyone if rovers is None else rovers
        rows = np.empty((len(ids), ROW), np.float32)
        views = rows[:, :BEV_SIZE].reshape(-1, *BEV_SHAPE)
        self.ground.view(ids, self.points[ids], self.headings[ids], views)
        rows[:, BEV_SIZE:] = self.proprioception(ids)
        return rows

    def proprioception(self, rovers: Ids | None = None) -> Float32s:
        """What rovers feel, (b, 6) float32.

        Nearest lidar range (m), previous forward and turning command (-1..1, left is positive),
        speed (m/s), turning rate (rad/s), heading of the widest gap (rad, left is positive).
        """
        ids = self._everyone if rovers is None else rovers
        out = np.empty((len(ids), PROPRIO), np.float32)
        driven, tracks, ranges = self._driven[ids], self._tracks_m_s[ids], self.ranges[ids]
        out[:, 0] = ranges.min(axis=1)
        out[:, 1] = driven.mean(axis=1)
        out[:, 2] = (driven[:, 1] - driven[:, 0]) / 2
        out[:, 3] = tracks.mean(axis=1)
        out[:, 4] = (tracks[:, 1] - tracks[:, 0]) / TRACK_M
        out[:, 5] = lidar.widest_gap(ranges)
        return out

    def _note_contact(self, ids: Ids, blocked: Bools, clearance_m: Float32s) -> Bools:
        """Where a contact began (b,)."""
        before = self._contact_steps[ids]
        contact = blocked | ((before > 0) & (clearance_m < BODY_RADIUS_M + CONTACT_M))
        self._contact_steps[ids] = np.where(contact, before + 1, 0)
        began: Bools = contact & (before == 0)
        self._collisions[ids] += began
        return began

    def _move(self, ids: Ids, driven: Float32s) -> tuple[Float32s, Float32s]:
        """Forward speed (b,) in m/s, and the clearance (b,) in m where the tracks lead.

        Where that is less than the body needs, the rover stays, and its speed is 0.
        """
        tracks = self._tracks_m_s[ids]
        tracks += (driven * MAX_SPEED_M_S - tracks) * np.float32(_TRACK_GAIN)
        forward = tracks.mean(axis=1)
        turn = (tracks[:, 1] - tracks[:, 0]) * np.float32(STEP_S / TRACK_M)
        heading = self.headings[ids]
        middle = heading + turn / 2
        along = forward * np.float32(STEP_S)
        points = self.points[ids] + np.stack([along * np.cos(middle), along * np.sin(middle)], 1)
        clearance_m = self.rooms.clearance_m(points, ids)
        blocked = clearance_m < BODY_RADIUS_M
        forward = np.where(blocked, np.float32(0), forward)
        # Blocked tracks still turn the rover, so that it can leave.
        tracks -= (blocked * tracks.mean(axis=1))[:, None]
        self._tracks_m_s[ids] = tracks
        self.points[ids] = np.where(blocked[:, None], self.points[ids], points)
        self.headings[ids] = (heading + turn + np.pi) % (2 * np.pi) - np.pi
        return forward, clearance_m

    def _scan(self, ids: Ids) -> None:
        points = self.points[ids]
        cosine, sine = lidar.directions(self.headings[ids])
        ranges = lidar.scan(points, cosine, sine, self.rooms.take(ids))
        self.ranges[ids] = ranges
        self.ground.mark_hits(ids, points, cosine, sine, ranges, ranges < lidar.RANGE_M)


def _driven(actions: NDArray[Any], count: int) -> Float32s:
    given = np.asarray(actions, np.float32)
    if given.shape != (count, ACTIONS) or not np.isfinite(given).all():
        raise ValueError(
            f"actions must be ({count}, {ACTIONS}) finite numbers, got {given.shape}: {given}"
        )
    commands = np.clip(given, -1, 1)
    return np.where(abs(commands) < DEAD_ZONE, np.float32(0), commands)


def _rewards(
    ground_m2: Float32s, forward_m_s: Float32s, collisions: Bools, blocked: Bools, failed: Bools
) -> Float32s:
    rewards = (
        ground_m2 * (GROUND_REWARD / _FULL_STEP_M2)
        + forward_m_s * (FORWARD_REWARD / MAX_SPEED_M_S)
        + collisions * COLLISION_REWARD
        + blocked * BLOCKED_REWARD
    )
    return np.where(failed, FAILURE_REWARD, np.clip(rewards, -1, 1)).astype(np.float32)
