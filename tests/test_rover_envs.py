"""The simulated rovers as Gymnasium environments: rows, totals, seeds, the picture."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs.rover
from envs.base import Steps
from envs.rover.baselines import wall_avoider
from envs.rover.gym_env import RoverEnv
from envs.rover.render import (
    BODY,
    CLEARED,
    CLEARED_SEEN,
    HIT,
    NOSE,
    PIXELS_M,
    SEEN,
    SIDE_PIXELS,
    SOLID,
    picture,
)
from envs.rover.vector_env import RoverVectorEnv
from envs.rover.world import BODY_RADIUS_M, EPISODE_STEPS, ROW, STUCK_STEPS, RoverWorld

PUSH = np.array([1.0, 1.0], np.float32)


def play(env: RoverVectorEnv, recvs: int) -> Iterator[Steps]:
    """Straight ahead, into the nearest wall."""
    env.async_reset()
    for _ in range(recvs):
        steps = env.recv()
        yield steps
        env.send(np.tile(PUSH, (len(steps.env_ids), 1)), steps.env_ids)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_rows_are_well_formed_and_first_follows_an_end(batch_size: int | None) -> None:
    env = envs.rover.make(num_envs=3, batch_size=batch_size, seeds=5)
    assert env.single_observation_space.shape == (ROW,) and env.frame_skip == 1
    ended, ends = np.ones(3, dtype=bool), 0
    for steps in play(env, 600):
        steps.check_valid()
        assert steps.observations.shape == (env.batch_size, ROW)
        assert env.single_observation_space.contains(steps.observations[0])
        np.testing.assert_array_equal(steps.first, ended[steps.env_ids])
        ended[steps.env_ids] = steps.terminated | steps.truncated
        ends += int(ended[steps.env_ids].sum())
    assert ends >= 3


def test_rows_do_not_depend_on_how_the_steps_interleave() -> None:
    rows: list[list[bytes]] = []
    for num_envs, batch_size in ((1, 1), (4, 4), (4, 3)):
        env = envs.rover.make(num_envs=num_envs, batch_size=batch_size, seeds=11)
        mine = [
            steps.observations[i].tobytes() + steps.rewards[i].tobytes()
            for steps in play(env, 450)
            for i in np.flatnonzero(steps.env_ids == 0)
        ]
        rows.append(mine[:300])
    assert rows[0] == rows[1] == rows[2] and len(set(rows[0])) > STUCK_STEPS


def test_a_time_limit_truncates_and_a_wall_terminates() -> None:
    env = envs.rover.make(num_envs=2, seeds=3)
    env.reset()
    terminated_at = 0
    for step in range(1, EPISODE_STEPS + 1):
        _, rewards, terminated, truncated, _ = env.step(np.array([[0, 0], PUSH]))
        assert truncated[0] == (step == EPISODE_STEPS) and not terminated[0]
        if terminated[1] and not terminated_at:
            terminated_at = step
            assert rewards[1] == -1 and not truncated[1]
    assert terminated_at > STUCK_STEPS


def test_totals_count_steps_ground_and_collisions() -> None:
    env = envs.rover.make(num_envs=2, seeds=1)
    world = RoverWorld(2, [1, 2])
    resets, expected = 0, np.zeros((3, 2))
    for steps in play(env, 300):
        if resets:  # The world's own start is the first.
            world.reset(steps.first)
        resets += int(steps.first.sum())
        driven = np.flatnonzero(~steps.first)
        if len(driven):
            result = world.step(np.tile(PUSH, (len(driven), 1)), driven)
            np.testing.assert_array_equal(result.rewards, steps.rewards[driven])
            expected[0, driven] += 1
            expected[1, driven] += result.collisions
            expected[2, driven] += result.ground_m2
        totals = env.totals()
        np.testing.assert_array_equal(totals["env_steps"], expected[0])
        np.testing.assert_array_equal(totals["collisions"], expected[1])
        np.testing.assert_allclose(totals["ground_m2"], expected[2])
    assert expected[1].min() >= 1 and expected[2].min() > 0.5 and resets > 2


def test_a_seed_restarts_the_rooms_and_no_seed_goes_on_to_new_ones() -> None:
    env = envs.rover.make(num_envs=2, seeds=1)
    first, _ = env.reset(seed=9)
    second, infos = env.reset()
    assert infos["first"].all() and (first != second).any(axis=1).all()
    for _ in range(EPISODE_STEPS):
        env.step(np.zeros((2, 2)))
    again, infos = env.reset(seed=9)  # Both rovers' episodes were over.
    np.testing.assert_array_equal(again, first)
    assert infos["first"].all()
    *_, infos = env.step(np.zeros((2, 2)))
    assert not infos["first"].any()


def test_received_arrays_stay_as_they_were() -> None:
    env = envs.rover.make(num_envs=2, batch_size=1)
    kept = [(steps, steps.observations.copy(), steps.rewards.copy()) for steps in play(env, 60)]
    for steps, observations, rewards in kept:
        np.testing.assert_array_equal(steps.observations, observations)
        np.testing.assert_array_equal(steps.rewards, rewards)


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest: rover"):
        envs.rover.make("Rover1", num_envs=1)


@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
def test_gymnasium_finds_nothing_wrong_with_a_single_rover() -> None:
    check_env(RoverEnv(render_mode="rgb_array"))


def test_a_single_rover_is_the_world_s_and_tells_what_it_did() -> None:
    env, ground_m2, collisions, reward = RoverEnv(), 0.0, 0, 0.0
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(PUSH)
    observation, _ = env.reset(seed=4)
    assert env.render() is None
    terminated = truncated = False
    while not terminated and not truncated:
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, infos = env.step(PUSH)
        np.testing.assert_array_equal(infos["driven"], PUSH)
        ground_m2 += infos["ground_m2"]
        collisions += infos["collision"]
    assert terminated and reward == -1 and collisions >= 1 and ground_m2 > 0.3
    fresh, _ = env.reset()
    again, _ = env.reset(seed=4)
    assert (fresh["bev"] != again["bev"]).any()


def test_unknown_render_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="'rgb_array' or None, got 'human'"):
        RoverEnv(render_mode="human")


def share(image: np.ndarray, *colours: tuple[int, int, int]) -> float:
    """The share of the image's pixels that have one of the colours."""
    return float(np.any([(image == colour).all(axis=2) for colour in colours], axis=0).mean())


def test_the_picture_shows_room_cleared_ground_lidar_and_rover() -> None:
    world = RoverWorld(2, [3, 4])
    start = picture(world, 1)
    assert start.shape == (SIDE_PIXELS, SIDE_PIXELS, 3) and start.dtype == np.uint8
    results = [world.step(wall_avoider(world.proprioception())).ground_m2[1] for _ in range(120)]
    later = picture(world, 1)
    picture_m2 = (SIDE_PIXELS / PIXELS_M) ** 2
    walls = 1 - float(world.rooms.sizes[1].prod()) / picture_m2
    for image in (start, later):
        assert walls - 0.02 < share(image, SOLID, HIT) < walls + 0.15
        body_m2 = share(image, BODY, NOSE) * picture_m2
        assert body_m2 == pytest.approx(np.pi * BODY_RADIUS_M**2, rel=0.1)
        assert share(image, SEEN, CLEARED_SEEN) > 0.05 and share(image, HIT) > 1e-4
    new_m2 = (
        share(later, CLEARED, CLEARED_SEEN) - share(start, CLEARED, CLEARED_SEEN)
    ) * picture_m2
    assert new_m2 == pytest.approx(sum(results), rel=0.1)
    assert not np.array_equal(picture(world, 0), later)
