"""Environments by entry string: what cannot be is refused by name before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rl_cluster.config import ConfigError, EnvironmentConfig
from rl_cluster.environments import EnvironmentSpec, make_environment, spec_of

ATARI, CATCH, CLASSIC = "envs.atari:make", "envs.catch:make", "envs.classic:make"


def refusal(entry: str, name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_environment(EnvironmentConfig(entry, name, settings), num_envs=1, threads=1)
    return str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "envs.catch",
        "envs.catch:",
        ":make",
        "envs.catsh:make",
        "envs.catch:maker",
        "nothing.like.it:make",
        ".catch:make",
    ],
)
def test_an_entry_that_is_not_there_is_refused_and_shows_how_one_looks(entry: str) -> None:
    said = refusal(entry, "Catch")
    assert said.startswith(f"env.entry is {entry!r}: ")
    assert "give module:function, such as envs.atari:make" in said


@pytest.mark.parametrize("entry", ["os:path", "os:getcwd", "math:pi"])
def test_an_entry_that_makes_no_environment_is_refused(entry: str) -> None:
    assert f"env 'Catch' of {entry}: " in refusal(entry, "Catch")


@pytest.mark.parametrize(
    ("entry", "name", "nearest"),
    [
        (ATARI, "Pnog", "Pong"),
        (ATARI, "Ms-Pacmen", "MsPacman"),
        (CATCH, "Katch", "Catch"),
        (CLASSIC, "Cartpole-v2", "CartPole-v1"),
    ],
)
def test_an_unknown_game_names_the_nearest(entry: str, name: str, nearest: str) -> None:
    said = refusal(entry, name)
    assert said.startswith(f"env {name!r} of {entry}: ")
    assert nearest in said.split("nearest: ")[1]


def test_a_wrong_setting_is_refused_and_named() -> None:
    assert "protokol" in refusal(CATCH, "Catch", protokol="nature")
    assert "nature" in refusal(ATARI, "Pong", protocol="natuer")
    assert "noop_max" in refusal(ATARI, "Pong", options={"noop_max": 0})
    assert "nearest: noop_max" in refusal(ATARI, "Pong", options={"noopmax": 1})


def test_a_setting_that_the_system_owns_cannot_be_given_twice() -> None:
    assert "num_envs" in refusal(CATCH, "Catch", num_envs=4)


def test_what_is_asked_for_is_what_is_made() -> None:
    config = EnvironmentConfig(CATCH, "Catch")
    env = make_environment(config, num_envs=5, batch_size=2, seeds=[9, 8, 7, 6, 5], threads=1)
    env.async_reset()
    steps = env.recv()
    assert (env.num_envs, len(steps.env_ids)) == (5, 2)
    env.close()


def test_the_seeds_reach_the_games() -> None:
    def starts(seeds: int | list[int]) -> list[bytes]:
        env = make_environment(EnvironmentConfig(CATCH, "Catch"), num_envs=4, seeds=seeds)
        observations, _ = env.reset()
        env.close()
        return [observation.tobytes() for observation in observations]

    assert starts(3) == starts([3, 4, 5, 6])
    assert starts([3, 3, 3, 3]) == starts([3] * 4) != starts(3)


def test_settings_reach_the_entry() -> None:
    config = EnvironmentConfig(CLASSIC, "CartPole-v1", {"max_episode_steps": 2})
    env = make_environment(config, num_envs=1, threads=1)
    env.reset()
    truncated = [bool(env.step(np.zeros(1, np.int64))[3][0]) for _ in range(2)]
    env.close()
    assert truncated == [False, True]


@pytest.mark.parametrize(
    ("entry", "name", "wanted"),
    [
        (CATCH, "Catch", EnvironmentSpec((84, 84), np.dtype(np.uint8), 3, 1)),
        (CLASSIC, "CartPole-v1", EnvironmentSpec((4,), np.dtype(np.float32), 2, 1)),
        (ATARI, "Pong", EnvironmentSpec((84, 84), np.dtype(np.uint8), 6, 4)),
    ],
)
def test_the_specification_is_of_one_frame(entry: str, name: str, wanted: EnvironmentSpec) -> None:
    env = make_environment(EnvironmentConfig(entry, name), num_envs=2, threads=1)
    assert spec_of(env) == wanted
    env.close()


def test_continuous_actions_are_refused() -> None:
    env = make_environment(EnvironmentConfig(CLASSIC, "Pendulum-v1"), num_envs=1, threads=1)
    with pytest.raises(ConfigError, match="DQN needs .* discrete actions.*Box"):
        spec_of(env)
    env.close()
