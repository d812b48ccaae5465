"""Catch: a small game of our own, with the uint8 frames of Atari, for tests and first steps.

A ball falls one row a step down a 7 x 7 board; the paddle on the bottom row moves left, stays
or moves right; catching gives +1, missing -1, and that ends the game (Mnih et al. 2014,
"Recurrent models of visual attention", section 4.3).
Invariant: drop k of an environment with seed s is a function of (s, k) alone, so the games do
not depend on how the environments' steps interleave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.base import Array, AsyncVectorEnv, EnvIds, Layout, Rows, nearest_names

CELLS = 7  # Rows and columns of the board.
CELL_PIXELS = 12
FRAME_PIXELS = CELLS * CELL_PIXELS  # 84, as Atari has
BALL, PADDLE = 255, 128  # Grey levels.
GAME_STEPS = CELLS - 1  # Steps from a reset to the end of the drop.
_STATE = ("seeds", "drops", "ball_row", "ball_column", "paddle", "reward", "ready")


class Catch(AsyncVectorEnv):
    """Vectorized Catch: all environments are columns of the same arrays.

    Observations uint8 (84, 84); actions 0 left, 1 stay, 2 right. Steps are computed in `send`,
    in the caller's thread; `recv` delivers them in the order they were sent.
    """

    def __init__(self, layout: Layout) -> None:
        num_envs = layout.num_envs
        super().__init__(
            layout=layout,
            observation_space=spaces.Box(0, 255, (FRAME_PIXELS, FRAME_PIXELS), np.uint8),
            action_space=spaces.Discrete(3),
            config={"num_envs": num_envs, "batch_size": layout.batch_size},
        )
        self._frames = _all_frames()
        self._ball_row = np.zeros(num_envs, dtype=np.int64)
        self._ball_column = np.zeros(num_envs, dtype=np.int64)
        self._paddle = np.zeros(num_envs, dtype=np.int64)
        self._reward = np.zeros(num_envs, dtype=np.float32)
        self._ready: EnvIds = np.arange(0)
        self._reseed(layout.seeds)

    def _reseed(self, seeds: Sequence[int]) -> None:
        self._seeds = np.asarray(seeds, dtype=np.uint64)
        self._drops = np.zeros(self.num_envs, dtype=np.uint64)

    def _start(self) -> None:
        everyone = np.arange(self.num_envs)
        self._drop_ball(everyone)
        self._ready = everyone

    def _state(self) -> dict[str, Array]:
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def _restore(self, state: Mapping[str, Array]) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name])

    def _drop_ball(self, env_ids: EnvIds) -> None:
        draws = _hash(self._seeds[env_ids], self._drops[env_ids])
        self._ball_column[env_ids] = (draws % np.uint64(CELLS)).astype(np.int64)
        self._drops[env_ids] += np.uint64(1)
        self._ball_row[env_ids] = 0
        self._paddle[env_ids] = CELLS // 2
        self._reward[env_ids] = 0

    def _dispatch(self, actions: Array, env_ids: EnvIds) -> None:
        landed = self._ball_row[env_ids] == CELLS - 1
        self._drop_ball(env_ids[landed])
        self._move(actions[~landed], env_ids[~landed])
        self._ready = np.concatenate([self._ready, env_ids])

    def _move(self, actions: Array, env_ids: EnvIds) -> None:
        paddle = np.clip(self._paddle[env_ids] + actions - 1, 0, CELLS - 1)
        self._paddle[env_ids] = paddle
        self._ball_row[env_ids] += 1
        outcome = np.where(paddle == self._ball_column[env_ids], 1.0, -1.0)
        self._reward[env_ids] = outcome * (self._ball_row[env_ids] == CELLS - 1)

    def _collect(self) -> Rows:
        env_ids, self._ready = np.split(self._ready, [self.batch_size])
        rows = self._ball_row[env_ids]
        landed = rows == CELLS - 1
        return Rows(
            env_ids=env_ids,
            observations=self._frames[rows, self._ball_column[env_ids], self._paddle[env_ids]],
            rewards=self._reward[env_ids],
            terminated=landed,
            truncated=np.zeros(len(env_ids), dtype=bool),
            game_over=landed,
        )


def make(
    name: str = "Catch",
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
) -> AsyncVectorEnv:
    """Make `num_envs` games of Catch.

    Args:
        name: "Catch".
        num_envs: copies of the game.
        batch_size: rows one `recv` returns; None is `num_envs`.
        seeds: environment i gets `seeds + i`, or one seed each; 0..2^31-1.
        threads: at most so many; Catch needs none but the caller's.

    Raises:
        ValueError: for another name.
    """
    if name != "Catch":
        raise ValueError(f"unknown game {name!r}; {nearest_names(name, ['Catch'])}")
    layout = Layout.checked(num_envs, batch_size, seeds, threads)
    return Catch(layout)


def _all_frames() -> NDArray[np.uint8]:
    """Every picture of the game, (ball row, ball column, paddle, 84, 84): 2.4 MB."""
    cells = np.arange(CELLS)
    row, column, paddle = np.meshgrid(cells, cells, cells, indexing="ij")
    board = np.zeros((CELLS, CELLS, CELLS, CELLS, CELLS), dtype=np.uint8)
    board[row, column, paddle, CELLS - 1, paddle] = PADDLE
    board[row, column, paddle, row, column] = BALL
    return board.repeat(CELL_PIXELS, axis=3).repeat(CELL_PIXELS, axis=4)


def _hash(seeds: NDArray[np.uint64], drops: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Draw `drops` of each stream `seeds`: SplitMix64 (Steele et al. 2014), (b,) uint64."""
    mixed: NDArray[np.uint64] = (seeds << np.uint64(32)) + (drops + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
