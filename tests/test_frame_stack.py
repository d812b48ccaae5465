"""Frame stacks for acting, against plain lists and against EnvPool's own stacks."""

from __future__ import annotations

import numpy as np
import pytest
from envpool_stacks import play, without_lost_lives
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import Row, unhurried

from rl_cluster.frame_stack import FrameStack


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
@unhurried
def test_a_stack_is_the_last_frames_of_the_episode_and_its_first_frame_before_them(
    depth: int, num_envs: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frames = FrameStack(num_envs, depth, (2,), np.dtype(np.uint16))
    episodes: list[list[list[int]]] = [[] for _ in range(num_envs)]
    for turn in range(40):
        env_ids = rng.permutation(num_envs)[: rng.integers(1, num_envs + 1)]
        first = np.array([not episodes[i] or rng.random() < 0.2 for i in env_ids])
        observations = np.stack([env_ids, np.full(len(env_ids), turn)], axis=1).astype(np.uint16)
        stacks = frames.push(env_ids, observations, first)
        for row, i in enumerate(env_ids.tolist()):
            episodes[i] = ([] if first[row] else episodes[i]) + [[i, turn]]
            padded = [episodes[i][0]] * (depth - len(episodes[i])) + episodes[i][-depth:]
            assert stacks[row].tolist() == padded
        stacks[:] = 9999  # the receiver may do with them what it likes
        observations[:] = 9999


def test_stacks_keep_shape_and_type_of_the_observations() -> None:
    frames = FrameStack(3, 4, (84, 84), np.dtype(np.uint8))
    stacks = frames.push(np.array([2, 0]), np.ones((2, 84, 84), np.uint8), np.array([True, True]))
    assert stacks.shape == (2, 4, 84, 84) and stacks.dtype == np.uint8


def acting(rows: list[list[Row]]) -> np.ndarray:
    """Stacks (turns, num_envs, 4, 84, 84) as a rollout has them."""
    frames = FrameStack(len(rows), 4, (84, 84), np.dtype(np.uint8))
    return np.stack(
        [
            frames.push(
                np.arange(len(rows)),
                np.stack([row.observation for row in turn]),
                np.array([row.first for row in turn]),
            )
            for turn in zip(*rows, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("game", "max_episode_steps"), [("Breakout", 400), ("Breakout", 45), ("Pong", 50)]
)
def test_stacks_for_acting_are_envpools_own(game: str, max_episode_steps: int) -> None:
    rows, expected = play(game, "machado", max_episode_steps)
    assert sum(row.ends for stream in rows for row in stream) >= 2
    np.testing.assert_array_equal(acting(rows), expected)


def test_after_a_lost_life_a_stack_starts_anew_where_envpools_shows_the_life_before() -> None:
    rows, envpools = play("Breakout", "nature", 90)
    np.testing.assert_array_equal(acting(rows), without_lost_lives(envpools, rows))
    assert (acting(rows) != envpools).any()
