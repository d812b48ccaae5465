"""The simulated rovers: motion, contact, lidar, cleared ground, rewards, episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from envs.rover import lidar
from envs.rover.baselines import random_policy, wall_avoider
from envs.rover.ground import CELL_M
from envs.rover.rooms import BOXES, FAR_M, START_CLEARANCE_M, Rooms
from envs.rover.world import (
    BEV_SIZE,
    BODY_RADIUS_M,
    DEAD_ZONE,
    EPISODE_STEPS,
    MAX_COLLISIONS,
    MAX_SPEED_M_S,
    MAX_TURN_RAD_S,
    STEP_S,
    STUCK_STEPS,
    RoverWorld,
    StepResult,
)

SIDE_M = 12.0
FORWARD, LEFT, STOP = [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]


def empty_room(x: float = SIDE_M / 2, y: float = SIDE_M / 2, heading: float = 0.0) -> RoverWorld:
    """One rover in a room without obstacles, 12 m to a side; nothing is cleared yet."""
    world = RoverWorld(1, [0])
    world.rooms.sizes[:] = SIDE_M
    world.rooms.boxes[:] = FAR_M
    world.rooms.discs[:, :, :2] = FAR_M
    world.points[:] = x, y
    world.headings[:] = heading
    world.ground.forget(np.array([0]))
    return world


def drive(world: RoverWorld, action: list[float], steps: int) -> list[StepResult]:
    return [world.step(np.array([action])) for _ in range(steps)]


def views(world: RoverWorld) -> np.ndarray:
    return world.observe()[0]


def test_full_speed_ahead_clears_a_lane_as_wide_as_the_body() -> None:
    world = empty_room(x=2)
    results = drive(world, FORWARD, 180)
    np.testing.assert_allclose(world.points[0, 1], 6, atol=1e-4)
    distance = float(world.points[0, 0]) - 2
    # The speed lags 0.15 s behind the command, so that much of the way is lost at the start.
    assert distance == pytest.approx(MAX_SPEED_M_S * (6 - 0.15), abs=0.05)
    area = sum(float(result.ground_m2[0]) for result in results)
    lane = 2 * BODY_RADIUS_M * distance + np.pi * BODY_RADIUS_M**2
    assert area == pytest.approx(lane, rel=0.03)
    _, proprio = world.observe()
    np.testing.assert_allclose(proprio[0, 1:5], [1, 0, MAX_SPEED_M_S, 0], atol=1e-3)


def test_ground_counts_once() -> None:
    world = empty_room(x=4)
    drive(world, FORWARD, 90)
    drive(world, STOP, 30)
    back = drive(world, [-1.0, -1.0], 60)
    assert sum(float(result.ground_m2[0]) for result in back) == 0
    assert all(float(result.rewards[0]) < 0 for result in back)  # Backwards, and nothing new.


def test_the_right_track_turns_the_rover_to_the_left_on_the_spot() -> None:
    world = empty_room()
    drive(world, LEFT, 60)
    before = float(world.headings[0])
    drive(world, LEFT, 10)
    turned = (float(world.headings[0]) - before) % (2 * np.pi)
    assert turned == pytest.approx(MAX_TURN_RAD_S * 10 * STEP_S, rel=1e-3)
    np.testing.assert_allclose(world.points[0], 6, atol=1e-4)
    _, proprio = world.observe()
    np.testing.assert_allclose(proprio[0, 1:5], [0, 1, 0, MAX_TURN_RAD_S], atol=1e-3)


def test_commands_in_the_dead_zone_drive_nothing_and_large_ones_are_cut() -> None:
    world = empty_room()
    (result,) = drive(world, [DEAD_ZONE * 0.9, -DEAD_ZONE * 0.9], 1)
    np.testing.assert_array_equal(result.driven, [[0, 0]])
    np.testing.assert_array_equal(world.points[0], [6, 6])
    (result,) = drive(world, [DEAD_ZONE * 1.1, -7.0], 1)
    np.testing.assert_allclose(result.driven, [[DEAD_ZONE * 1.1, -1]])


@pytest.mark.parametrize(
    "actions", [np.zeros((1, 3)), np.zeros(2), np.zeros((2, 2)), np.array([[0, np.nan]])]
)
def test_actions_that_are_none_are_refused(actions: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"actions must be \(1, 2\) finite"):
        empty_room().step(actions)


def test_every_rover_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="one seed each"):
        RoverWorld(2, [1])


def test_a_rover_that_pushes_a_wall_is_stuck_and_its_episode_ends() -> None:
    world = empty_room(x=SIDE_M - 1)
    results = drive(world, FORWARD, 40)
    assert sum(bool(result.collisions[0]) for result in results) == 1
    contact = next(k for k, result in enumerate(results) if result.collisions[0])
    results += drive(world, FORWARD, contact + STUCK_STEPS - len(results))
    last = results[-1]
    assert last.dones[0] and not last.truncated[0] and last.rewards[0] == -1
    assert not any(result.dones[0] for result in results[:-1])
    creep_m2 = sum(float(result.ground_m2[0]) for result in results[contact:])
    assert creep_m2 < 2 * BODY_RADIUS_M * MAX_SPEED_M_S * STEP_S
    assert world.points[0, 0] == pytest.approx(SIDE_M - BODY_RADIUS_M, abs=MAX_SPEED_M_S * STEP_S)


def test_a_blocked_rover_can_turn_and_leave() -> None:
    world = empty_room(x=SIDE_M - 0.5)
    drive(world, FORWARD, 30)
    drive(world, LEFT, round(np.pi / MAX_TURN_RAD_S / STEP_S))
    results = drive(world, FORWARD, 30)
    assert not any(result.collisions[0] for result in results)
    assert world.points[0, 0] < SIDE_M - 0.6


def test_too_many_collisions_end_the_episode() -> None:
    world = empty_room(x=SIDE_M - 0.5)
    collisions = 0
    for _ in range(MAX_COLLISIONS + 1):
        for action, steps in ((FORWARD, 20), ([-1.0, -1.0], 10)):
            for result in drive(world, action, steps):
                collisions += int(result.collisions[0])
                if result.dones[0]:
                    assert collisions == MAX_COLLISIONS + 1 and result.rewards[0] == -1
                    return
    pytest.fail(f"{collisions} collisions did not end the episode")


def test_the_time_limit_truncates() -> None:
    world = RoverWorld(2, [1, 2])
    for step in range(1, EPISODE_STEPS + 1):
        result = world.step(np.zeros((2, 2)))
        assert result.dones.all() == result.truncated.all() == (step == EPISODE_STEPS)
    world.reset(np.array([True, False]))
    np.testing.assert_array_equal(world.episode_steps, [0, EPISODE_STEPS])
    np.testing.assert_array_equal(world.episodes, [2, 1])


def test_nothing_solid_is_ever_entered_and_rewards_stay_within_one() -> None:
    world, rng = RoverWorld(40, range(40)), np.random.default_rng(0)
    everyone = np.arange(40)
    kinds = set()
    for _ in range(500):
        result = world.step(np.clip(rng.normal(0.7, 0.6, (40, 2)), -1, 1))
        clearance = world.rooms.clearance_m(world.points, everyone)
        assert clearance.min() >= BODY_RADIUS_M
        assert np.abs(result.rewards).max() <= 1
        kinds |= set(zip(result.dones.tolist(), result.truncated.tolist(), strict=True))
        world.reset(result.dones)
    assert kinds == {(False, False), (True, False), (True, True)}


def test_rooms_have_space_to_start_in_and_differ() -> None:
    world = RoverWorld(300, range(300))
    clearance = world.rooms.clearance_m(world.points, np.arange(300))
    assert clearance.min() >= START_CLEARANCE_M
    assert len(np.unique(world.rooms.sizes[:, 0])) == 300
    walled = (world.rooms.boxes[:, 0, 0] < FAR_M).mean()
    assert 0.4 < walled < 0.6
    boxes = (world.rooms.boxes[:, 2:, 0] < FAR_M).sum(axis=1)
    assert set(boxes.tolist()) == {3, 4, 5} and BOXES == 7


def test_rays_are_free_until_they_end_at_something_solid() -> None:
    world = RoverWorld(30, range(30))
    cosine, sine = lidar.directions(world.headings)
    met = 0
    for share in (0.25, 0.5, 0.75, 0.95, 1.0):
        for ray in range(lidar.RAYS):
            ranges = world.ranges[:, ray]
            ahead = np.stack([cosine[:, ray], sine[:, ray]], 1) * (share * ranges)[:, None]
            clearance = world.rooms.clearance_m(world.points + ahead, np.arange(30))
            if share < 1:
                assert clearance.min() > 0
            else:
                ends = clearance[ranges < lidar.RANGE_M]
                assert np.abs(ends).max(initial=0) < 1e-3
                met += len(ends)
    assert met > 1000 and world.ranges.max() == lidar.RANGE_M


def test_lidar_reads_the_distances_of_a_known_room() -> None:
    rooms = Rooms.empty(1)
    rooms.sizes[:] = 10, 8
    rooms.boxes[:] = FAR_M
    rooms.boxes[0, 0] = 4, 3, 5, 5  # 2 m ahead of (2, 4).
    rooms.discs[0] = [[2, 6, 0.5], *[[FAR_M, FAR_M, 0.1]] * 3]  # To the left, surface at 1.5 m.
    ranges = lidar.scan(
        np.array([[2, 4]], np.float32), *lidar.directions(np.zeros(1, np.float32)), rooms
    )
    quarter = lidar.RAYS // 4
    np.testing.assert_allclose(ranges[0, ::quarter], [2, 4, 2, 1.5], atol=1e-4)


def test_the_widest_gap_is_the_free_sector_and_ahead_when_all_are_alike() -> None:
    ranges = np.full((3, lidar.RAYS), 1, np.float32)
    middle = lidar.RAYS // 2
    ranges[1, middle + 20 - 8 : middle + 20 + 9] = 6  # 60 degrees to the left.
    ranges[2, middle - 3 : middle + 3] = 6  # Too narrow.
    gaps = lidar.widest_gap(ranges)
    assert gaps[0] == pytest.approx(0, abs=1e-6) and gaps[2] == pytest.approx(0, abs=1e-6)
    assert gaps[1] == pytest.approx(np.pi / 3, abs=np.deg2rad(6.1))


def test_the_view_shows_ahead_above_and_left_on_the_left() -> None:
    world = empty_room(x=3, y=SIDE_M - 2, heading=np.pi / 2)  # Wall 2 m ahead, 3 m to the left.
    drive(world, STOP, 1)
    obstacles = views(world)[0, 0]
    row = 64 - round(2 / CELL_M)
    column = 64 - round(3 / CELL_M)
    rows, columns = np.nonzero(obstacles)
    assert ((abs(rows - row) <= 1) | (abs(columns - column) <= 1)).all()
    assert (abs(rows - row) <= 1).sum() > 20 and (abs(columns - column) <= 1).sum() > 20

    world = empty_room(x=4)
    drive(world, FORWARD, 60)
    cleared = views(world)[0, 1]
    rows, columns = np.nonzero(cleared)
    half = BODY_RADIUS_M / CELL_M + 1.5
    assert rows.min() >= 64 - half and rows.max() > 64 + 1.5 / CELL_M  # The trail lies behind.
    assert np.abs(columns - 63.5).max() <= half


def test_obstacles_in_the_view_lie_at_surfaces_and_are_remembered() -> None:
    world = RoverWorld(10, range(10))
    before = views(world)[:, 0].sum()
    for _ in range(45):
        world.step(np.tile(LEFT, (10, 1)))
    turned = views(world)
    assert turned[:, 0].sum() > before
    assert set(np.unique(turned)) == {0, 1}
    for rover in range(10):
        rows, columns = np.nonzero(turned[rover, 0])
        ahead, left = (63.5 - rows) * CELL_M, (63.5 - columns) * CELL_M
        cosine, sine = np.cos(world.headings[rover]), np.sin(world.headings[rover])
        offset = np.stack([ahead * cosine - left * sine, ahead * sine + left * cosine], 1)
        room = np.full(len(rows), rover)
        clearance = world.rooms.clearance_m(world.points[rover] + offset, room)
        assert np.abs(clearance).max() < 2 * CELL_M


def test_rows_are_the_view_then_proprioception() -> None:
    world = RoverWorld(3, range(3))
    bev, proprio = world.observe()
    rows = world.observe_rows(np.array([2, 0]))
    assert bev.shape == (3, 2, 128, 128) and proprio.shape == (3, 6)
    assert bev.dtype == proprio.dtype == np.float32
    np.testing.assert_array_equal(rows[:, :BEV_SIZE], bev[[2, 0]].reshape(2, -1))
    np.testing.assert_array_equal(rows[:, BEV_SIZE:], proprio[[2, 0]])
    np.testing.assert_allclose(proprio[:, 0], world.ranges.min(axis=1))


def test_an_episode_depends_on_its_seed_and_actions_alone() -> None:
    together, alone = RoverWorld(3, [7, 8, 7]), RoverWorld(1, [7])
    rng = np.random.default_rng(0)
    for _ in range(600):
        action = rng.uniform(-0.5, 1, (1, 2))
        others = together.step(np.concatenate([action, rng.uniform(-1, 1, (1, 2)), action]))
        mine = alone.step(action)
        for column, expected in zip(others, mine, strict=True):
            np.testing.assert_array_equal(column[[0, 2]], np.repeat(expected, 2, axis=0))
        np.testing.assert_array_equal(together.observe_rows()[[0, 2]], alone.observe_rows()[[0, 0]])
        together.reset(others.dones)
        alone.reset(mine.dones)
    assert alone.episodes[0] > 1
    assert (together.rooms.sizes[0] != together.rooms.sizes[1]).all()


def returns_of(policy: Callable[[np.ndarray], np.ndarray], episodes: int = 24) -> np.ndarray:
    """The return of one episode of each of `episodes` rovers."""
    world = RoverWorld(episodes, range(500, 500 + episodes))
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        ids = np.flatnonzero(running)
        result = world.step(policy(world.proprioception(ids)), ids)
        returns[ids] += result.rewards
        running[ids[result.dones]] = False
    return returns


def test_driving_earns_more_than_jitter_and_avoiding_walls_more_than_driving() -> None:
    rng = np.random.default_rng(0)
    ladder = [
        returns_of(lambda proprio: random_policy(len(proprio), rng)),
        returns_of(lambda proprio: np.ones((len(proprio), 2))),
        returns_of(wall_avoider),
    ]
    for worse, better in zip(ladder, ladder[1:], strict=False):
        error = np.hypot(worse.std(), better.std()) / np.sqrt(len(worse))
        assert better.mean() - worse.mean() > 4 * error
