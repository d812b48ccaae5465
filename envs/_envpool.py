"""EnvPool's pools behind `AsyncVectorEnv`: shared by Atari and classic control.

Invariant: EnvPool's flags are translated here and nowhere else, to `terminated`, `truncated`
and `game_over` as `envs.base.Steps` defines them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import envpool
import numpy as np
from envpool.registration import registry
from gymnasium import spaces
from numpy.typing import NDArray

from envs.base import Array, AsyncVectorEnv, Bools, EnvIds, Layout, Rows


def task_ids(module: str) -> list[str]:
    """The ids of EnvPool's tasks that `module` implements (for instance "envpool.atari")."""
    return [task for task, (path, _, _) in registry.specs.items() if path == module]


class EnvPoolVectorEnv(AsyncVectorEnv):
    """An EnvPool task whose episodes are whole games (classic control).

    EnvPool calls an episode truncated if it ends at the last permitted step, even if it also
    failed there; for tasks other than Atari nothing tells the two apart.
    """

    def __init__(self, task_id: str, layout: Layout, options: Mapping[str, Any]) -> None:
        """Build the pool.

        Args:
            task_id: EnvPool's name, e.g. "Pong-v5".
            layout: sizes and seeds; 0 threads are min(batch_size, processors).
            options: EnvPool's own options, already checked.
        """
        self._task_id = task_id
        self._pool_options = {
            **options,
            "num_envs": layout.num_envs,
            "batch_size": layout.batch_size,
            "num_threads": layout.threads,
        }
        self._reseed(layout.seeds)
        super().__init__(
            layout=layout,
            observation_space=self._frame_space(self._pool.observation_space),
            action_space=self._pool.spec.action_space,
            frame_skip=int(self._pool.config.get("frame_skip", 1)),
            config=self._pool.config,
        )

    def _reseed(self, seeds: Sequence[int]) -> None:
        # EnvPool takes seeds at construction only.
        self._pool: Any = envpool.make_gymnasium(
            self._task_id, seed=list(seeds), **self._pool_options
        )
        with warnings.catch_warnings():
            # EnvPool builds this space once, at first use, and Gymnasium warns that the bounds
            # are float64 and the space is float32.
            warnings.simplefilter("ignore", UserWarning)
            _ = self._pool.observation_space

    def _frame_space(self, space: spaces.Box) -> spaces.Box:
        return space

    def _start(self) -> None:
        self._pool.async_reset()

    def _dispatch(self, actions: Array, env_ids: EnvIds) -> None:
        self._pool.send(actions, env_ids)

    def _collect(self) -> Rows:
        observations, rewards, terminated, truncated, info = self._pool.recv()
        env_ids = info["env_id"].astype(np.int64)
        return self._translate(
            Rows(env_ids, observations, rewards, terminated, truncated, terminated | truncated),
            info,
        )

    def _translate(self, rows: Rows, info: Mapping[str, Array]) -> Rows:
        return rows

    def close_extras(self, **kwargs: Any) -> None:
        """Join EnvPool's threads and free the emulators."""
        self._pool = None


class AtariEnvPool(EnvPoolVectorEnv):
    """EnvPool's Atari: single frames, lost lives and whole games kept apart.

    With `episodic_life`, EnvPool ends the row at a lost life, goes on with the same game after
    its no-ops, and starts a fresh game after a game over or at the time limit. It says
    "truncated" to whatever ends at the last permitted step; here a game over or a lost life
    there is `terminated`.
    """

    def __init__(self, task_id: str, layout: Layout, options: Mapping[str, Any]) -> None:
        self._lives: NDArray[np.int32] = np.zeros(layout.num_envs, dtype=np.int32)
        self._lost_life: Bools = np.zeros(layout.num_envs, dtype=bool)
        super().__init__(task_id, layout, options)

    def _frame_space(self, space: spaces.Box) -> spaces.Box:
        return spaces.Box(0, 255, space.low.shape[1:], np.uint8)

    def _start(self) -> None:
        self._lost_life[:] = False
        super()._start()

    def _translate(self, rows: Rows, info: Mapping[str, Array]) -> Rows:
        lives, lives_before = info["lives"], self._lives[rows.env_ids]
        emulator_over = info["terminated"].astype(bool)
        terminated = rows.terminated | (rows.truncated & emulator_over)
        if self.config["episodic_life"]:
            terminated |= rows.truncated & (lives < lives_before)
        # A game can end in the no-ops after a lost life. EnvPool then starts the next one
        # without saying so, and two scores would run together; but the lives have come back.
        unseen = self._lost_life[rows.env_ids] & (lives > lives_before)
        game_over = emulator_over | rows.truncated | unseen
        self._lives[rows.env_ids] = lives
        self._lost_life[rows.env_ids] = terminated & ~game_over
        return rows._replace(
            observations=rows.observations[:, 0],
            terminated=terminated,
            truncated=rows.truncated & ~terminated,
            game_over=game_over,
        )
