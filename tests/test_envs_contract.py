"""What every environment promises: the rows, their order, their flags, Gymnasium's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs import atari, catch, classic
from envs.base import AsyncVectorEnv, Steps

SHORT: dict[str, Callable[..., AsyncVectorEnv]] = {
    "envpool": lambda **kw: atari.make("Breakout", options={"max_episode_steps": 25}, **kw),
    "envpool nature": lambda **kw: atari.make("Breakout", protocol="nature", **kw),
    "ale": lambda **kw: atari.make(
        "Breakout", backend="ale", options={"max_num_frames_per_episode": 100}, **kw
    ),
    "catch": lambda **kw: catch.make("Catch", **kw),
    "cartpole": lambda **kw: classic.make("CartPole-v1", max_episode_steps=20, **kw),
}
Maker = Callable[..., AsyncVectorEnv]


@pytest.fixture(params=SHORT)
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    made: list[AsyncVectorEnv] = []

    def make_one(**kwargs: Any) -> AsyncVectorEnv:
        made.append(SHORT[request.param](**kwargs))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def scripted_actions(env: AsyncVectorEnv, env_ids: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Actions that depend on the environment and on how many rows it has had, on nothing else."""
    space: Any = env.single_action_space
    return (env_ids * 7 + turns[env_ids] * 5 + turns[env_ids] ** 2 // 3) % int(space.n)


def play(env: AsyncVectorEnv, recvs: int, reverse: bool = False) -> Iterator[Steps]:
    turns = np.zeros(env.num_envs, dtype=np.int64)
    env.async_reset()
    for _ in range(recvs):
        steps = env.recv()
        yield steps
        env_ids = steps.env_ids[:: -1 if reverse else 1].copy()
        env.send(scripted_actions(env, env_ids, turns), env_ids)
        turns[env_ids] += 1


def rows_of_each(
    env: AsyncVectorEnv, wanted: int, reverse: bool = False
) -> list[list[tuple[bytes, float, bool, bool]]]:
    """The first `wanted` rows of every environment, each environment for itself."""
    rows: list[list[tuple[bytes, float, bool, bool]]] = [[] for _ in range(env.num_envs)]
    for steps in play(env, 100 * wanted, reverse):
        for i, env_id in enumerate(steps.env_ids):
            ended = bool(steps.terminated[i] | steps.truncated[i])
            row = (steps.observations[i].tobytes(), float(steps.rewards[i]))
            rows[env_id].append((*row, ended, bool(steps.first[i])))
        if min(map(len, rows)) >= wanted:
            break
    return [mine[:wanted] for mine in rows]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_rows_are_well_formed_and_first_follows_an_end(make: Maker, batch_size: int | None) -> None:
    env = make(num_envs=5, batch_size=batch_size)
    ended = np.ones(5, dtype=bool)
    ends = 0
    for steps in play(env, 70 if batch_size is None else 180):
        steps.check_valid()
        assert len(steps.env_ids) == env.batch_size
        assert steps.observations.shape[1:] == env.single_observation_space.shape
        assert steps.observations.dtype == env.single_observation_space.dtype
        np.testing.assert_array_equal(steps.first, ended[steps.env_ids])
        ended[steps.env_ids] = steps.terminated | steps.truncated
        ends += int((steps.terminated | steps.truncated).sum())
    assert ends > 0


def test_every_environment_gives_one_row_for_each_action(make: Maker) -> None:
    env = make(num_envs=5, batch_size=2)
    running = np.ones(5, dtype=bool)
    delivered = np.zeros(5, dtype=np.int64)
    env.async_reset()
    for turn in range(20_000):  # a thread that the machine has no core for comes later
        if turn >= 100 and delivered.min() > 0:
            break
        steps = env.recv()
        assert running[steps.env_ids].all()
        running[steps.env_ids] = False
        delivered[steps.env_ids] += 1
        # In reverse: the order of the ids is the caller's.
        ids = steps.env_ids[::-1].copy()
        env.send(np.full(2, turn % 2), ids)
        running[ids] = True
    assert delivered.min() > 0


def test_games_depend_on_seeds_and_not_on_batches_or_the_order_of_sending(make: Maker) -> None:
    whole = rows_of_each(make(num_envs=4, seeds=3), wanted=35)
    parts = rows_of_each(
        make(num_envs=4, batch_size=3, seeds=[3, 4, 5, 6]), wanted=35, reverse=True
    )
    assert whole == parts


def test_equal_seeds_give_equal_games_and_other_seeds_others(make: Maker) -> None:
    env = make(num_envs=3, seeds=[11, 11, 12])
    env.async_reset()
    same, other = True, True
    for turn in range(60):
        steps = env.recv()
        frames = steps.observations[np.argsort(steps.env_ids)]
        same &= bool((frames[0] == frames[1]).all())
        other &= bool((frames[0] == frames[2]).all())
        env.send(np.full(3, turn // 3 % 2), steps.env_ids)
    assert same and not other


def test_gymnasium_reset_and_step_follow_the_seed(make: Maker) -> None:
    env = make(num_envs=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    runs = []
    for _ in range(2):
        observations, infos = env.reset(seed=5)
        assert env.observation_space.contains(observations)
        assert infos["first"].all()
        run = [observations]
        for turn in range(30):
            step = env.step(np.full(2, turn % 2))
            assert [part.shape for part in step[1:4]] == [(2,)] * 3
            run += [step[0], *step[1:4], step[4]["first"]]
        runs.append(run)
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, two)


def test_reset_without_a_seed_goes_on_to_new_games(make: Maker) -> None:
    env = make(num_envs=2)
    env.reset(seed=1)
    env.step(np.zeros(2, dtype=np.int64))
    _, infos = env.reset()
    assert infos["first"].all()
    *_, infos = env.step(np.zeros(2, dtype=np.int64))
    assert not infos["first"].any()


def test_reset_and_step_are_refused_for_a_part_of_the_environments(make: Maker) -> None:
    env = make(num_envs=2, batch_size=1)
    with pytest.raises(RuntimeError, match="batch_size == num_envs"):
        env.reset()
    with pytest.raises(RuntimeError, match="batch_size == num_envs"):
        env.step(np.zeros(2, dtype=np.int64))


def test_received_arrays_stay_as_they_were(make: Maker) -> None:
    env = make(num_envs=3, batch_size=2)
    kept = [(steps, steps.observations.copy(), steps.rewards.copy()) for steps in play(env, 60)]
    for steps, observations, rewards in kept:
        np.testing.assert_array_equal(steps.observations, observations)
        np.testing.assert_array_equal(steps.rewards, rewards)


def test_recv_that_could_never_return_is_an_error(make: Maker) -> None:
    env = make(num_envs=2)
    with pytest.raises(RuntimeError, match="0 environments are running"):
        env.recv()
    env.async_reset()
    with pytest.raises(RuntimeError, match="still being computed"):
        env.async_reset()


def test_actions_are_checked_before_they_reach_the_emulator(make: Maker) -> None:
    env = make(num_envs=2)
    env.async_reset()
    both = np.arange(2)
    with pytest.raises(ValueError, match="await an action"):
        env.send(np.zeros(2, dtype=np.int64), both)
    env.recv()
    for actions, ids, message in [
        (np.array([0, 99]), both, "within 0"),
        (np.array([0, -1]), both, "within 0"),
        (np.array([0.0, 1.0]), both, "want integers"),
        (np.array([0]), both, "shape"),
        (np.array([0, 0]), np.array([1, 1]), "different environments"),
        (np.array([0, 0]), np.array([0, 2]), "different environments"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.send(actions, ids)
    env.send(np.array([0, 1]), both)
    env.recv().check_valid()


def test_a_closed_environment_says_so(make: Maker) -> None:
    env = make(num_envs=2, batch_size=1)
    env.async_reset()
    env.recv()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.recv()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"num_envs": 2, "batch_size": 3}, "batch_size"),
        ({"num_envs": 2, "batch_size": 0}, "batch_size"),
        ({"num_envs": 2, "seeds": [1]}, "1 seeds for 2"),
        ({"num_envs": 2, "seeds": -1}, "within 0"),
        ({"num_envs": 2, "seeds": 2**31 - 1}, "within 0"),
        ({"num_envs": 2, "threads": -1}, "threads"),
    ],
)
def test_impossible_sizes_and_seeds_are_refused(
    make: Maker, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def valid_steps() -> Steps:
    no = np.zeros(2, dtype=bool)
    return Steps(
        env_ids=np.array([4, 1]),
        observations=np.zeros((2, 84, 84), dtype=np.uint8),
        rewards=np.zeros(2, dtype=np.float32),
        terminated=no,
        truncated=no,
        first=no,
        game_over=no,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(2)}, "rewards is float64"),
        ({"env_ids": np.array([1, 1])}, "twice"),
        ({"terminated": np.zeros(3, dtype=bool)}, r"\(3,\)"),
        ({"observations": np.zeros((3, 4), dtype=np.uint8)}, "3 observations"),
        (dict.fromkeys(("terminated", "truncated"), np.array([True, False])), "both"),
        (dict.fromkeys(("terminated", "first"), np.array([True, False])), "reset row"),
        ({"truncated": np.array([True, False])}, "does not end its game"),
        ({"game_over": np.array([True, False])}, "neither ended"),
        (
            {"first": np.array([True, False]), "rewards": np.ones(2, dtype=np.float32)},
            "has a reward",
        ),
    ],
)
def test_check_valid_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    valid_steps().check_valid()
    with pytest.raises(ValueError, match=message):
        replace(valid_steps(), **changes).check_valid()


def test_cartpole_falls_or_reaches_its_time_limit() -> None:
    env = classic.make("CartPole-v1", num_envs=4)
    assert env.single_observation_space.shape == (4,)
    assert env.single_observation_space.dtype == np.float32
    assert env.frame_skip == 1 and env.config["max_episode_steps"] == 500
    env.reset()
    lengths = [0] * 4
    for turn in range(1, 31):
        _, rewards, terminated, truncated, infos = env.step(np.ones(4, dtype=np.int64))
        np.testing.assert_array_equal(rewards, np.where(infos["first"], 0.0, 1.0))
        assert not truncated.any()
        for i in np.flatnonzero(terminated):
            lengths[i] = lengths[i] or turn
    assert all(8 <= length <= 11 for length in lengths)
    env.close()

    limited = classic.make("CartPole-v1", num_envs=4, max_episode_steps=5)
    limited.reset()
    for turn in range(1, 13):
        _, _, terminated, truncated, infos = limited.step(np.full(4, turn % 2))
        assert not terminated.any()
        assert truncated.all() == infos["game_over"].all() == (turn in (5, 11))
        assert infos["first"].all() == (turn in (6, 12))
    limited.close()


def test_unknown_classic_tasks_and_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nearest: CartPole-v1"):
        classic.make("Cartpole", num_envs=1)
    with pytest.raises(ValueError, match="at least 1"):
        classic.make("CartPole-v1", num_envs=1, max_episode_steps=0)
