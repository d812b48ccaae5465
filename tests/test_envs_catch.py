"""Catch: the rules, the pictures, the randomness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs import catch
from envs.catch import CELL_PIXELS

BALL, PADDLE = 255, 128


def columns(frames: np.ndarray, level: int) -> np.ndarray:
    """The board column (b,) of the thing drawn in `level`."""
    pixels = (frames == level).any(axis=1).argmax(axis=1)
    return np.asarray(pixels // CELL_PIXELS)


def test_a_frame_shows_the_ball_and_the_paddle() -> None:
    env = catch.make(num_envs=5, seeds=7)
    frames, _ = env.reset()
    assert frames.shape == (5, 84, 84) and frames.dtype == np.uint8
    for row in range(6):
        np.testing.assert_array_equal((frames == BALL).sum(axis=(1, 2)), CELL_PIXELS**2)
        np.testing.assert_array_equal((frames == PADDLE).sum(axis=(1, 2)), CELL_PIXELS**2)
        assert (frames[:, 6 * CELL_PIXELS :] == PADDLE).any(axis=(1, 2)).all()
        np.testing.assert_array_equal(
            (frames == BALL).any(axis=2).argmax(axis=1) // CELL_PIXELS, row
        )
        frames, *_ = env.step(np.ones(5, dtype=np.int64))


def test_following_the_ball_always_wins_and_fleeing_it_always_loses() -> None:
    env = catch.make(num_envs=64)
    for follow in (True, False):
        frames, _ = env.reset(seed=0)
        for turn in range(1, 36):
            ball, paddle = columns(frames, BALL), columns(frames, PADDLE)
            toward = np.sign(ball - paddle).astype(np.int64)
            away = np.where(ball > 3, -1, 1)
            frames, rewards, terminated, truncated, infos = env.step(
                1 + (toward if follow else away)
            )
            ends = turn % 7 == 6
            np.testing.assert_array_equal(rewards, (1.0 if follow else -1.0) * ends)
            assert terminated.all() == terminated.any() == ends
            assert infos["game_over"].all() == ends and not truncated.any()
            assert infos["first"].all() == infos["first"].any() == (turn % 7 == 0)


def test_the_paddle_moves_one_cell_and_stops_at_the_walls() -> None:
    env = catch.make(num_envs=3)
    frames, _ = env.reset()
    start = columns(frames, PADDLE)
    np.testing.assert_array_equal(start, 3)
    seen = []
    for _ in range(5):
        frames, *_ = env.step(np.array([0, 1, 2]))
        seen.append(columns(frames, PADDLE))
    np.testing.assert_array_equal(seen, [[2, 3, 4], [1, 3, 5], [0, 3, 6], [0, 3, 6], [0, 3, 6]])


def test_balls_fall_in_every_column_alike_for_every_seed() -> None:
    env = catch.make(num_envs=512)
    counts = np.zeros(7)
    drops = 20
    env.reset()
    for _ in range(drops):
        for _ in range(7):
            frames, *_ = env.step(np.ones(512, dtype=np.int64))
        counts += np.bincount(columns(frames, BALL), minlength=7)
    expected = 512 * drops / 7
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected * 6 / 7)


def test_random_play_earns_what_the_rules_imply() -> None:
    caught = 0
    for moves in itertools.product((-1, 0, 1), repeat=6):
        paddle = 3
        for move in moves:
            paddle = min(6, max(0, paddle + move))
        caught += paddle in range(7)
    assert caught == 3**6  # Wherever the paddle ends, one column in seven is right.
    expected = 2 / 7 - 1

    env = catch.make(num_envs=256)
    rng = np.random.default_rng(0)
    env.reset()
    returns = np.zeros(0)
    for _ in range(7 * 20):
        _, rewards, terminated, _, _ = env.step(rng.integers(3, size=256))
        returns = np.concatenate([returns, rewards[terminated]])
    assert len(returns) == 256 * 20
    assert abs(returns.mean() - expected) < 4 * returns.std() / np.sqrt(len(returns))


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest: Catch"):
        catch.make("catch", num_envs=1)
