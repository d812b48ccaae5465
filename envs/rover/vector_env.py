"""Simulated rovers as an `AsyncVectorEnv`, with flat observations.

Invariant: a finished rover's next step resets it and ignores its action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.base import Array, AsyncVectorEnv, EnvIds, Layout, Rows, nearest_names
from envs.rover.world import ACTIONS, ROW, RoverWorld


class RoverVectorEnv(AsyncVectorEnv):
    """Rovers, each in its own rooms.

    Observations float32 (32774,): the view (2, 128, 128) in C order, then proprioception (6,).
    Actions float32 (2,), left and right track. Steps are computed in `send`, in the caller's
    thread; `recv` delivers them in the order they were sent.
    """

    def __init__(self, layout: Layout) -> None:
        num_envs = layout.num_envs
        super().__init__(
            layout=layout,
            observation_space=spaces.Box(-np.inf, np.inf, (ROW,), np.float32),
            action_space=spaces.Box(-1, 1, (ACTIONS,), np.float32),
            config={"num_envs": num_envs, "batch_size": layout.batch_size},
        )
        self._totals: dict[str, NDArray[Any]] = {
            "env_steps": np.zeros(num_envs, np.int64),
            "collisions": np.zeros(num_envs, np.int64),
            "ground_m2": np.zeros(num_envs, np.float64),
        }
        self._ready: EnvIds = np.arange(0)
        self._reseed(layout.seeds)

    def totals(self) -> dict[str, NDArray[Any]]:
        """Per environment, (num_envs,), since this object was made.

        `env_steps` (int64, resets not counted), `collisions` (int64), `ground_m2` (float64,
        newly cleared). Differences between two calls give rates.
        """
        return {name: total.copy() for name, total in self._totals.items()}

    def _reseed(self, seeds: Sequence[int]) -> None:
        self._world = RoverWorld(self.num_envs, seeds)
        self._fresh = True  # Every rover is at the start of its first episode.
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._terminated = np.zeros(self.num_envs, dtype=bool)
        self._truncated = np.zeros(self.num_envs, dtype=bool)

    def _start(self) -> None:
        everyone = np.arange(self.num_envs)
        if not self._fresh:
            self._restart(everyone)
        self._fresh = False
        self._ready = everyone

    def _restart(self, env_ids: EnvIds) -> None:
        self._world.reset(np.isin(np.arange(self.num_envs), env_ids))
        self._rewards[env_ids] = 0
        self._terminated[env_ids] = self._truncated[env_ids] = False

    def _dispatch(self, actions: Array, env_ids: EnvIds) -> None:
        ended = (self._terminated | self._truncated)[env_ids]
        if ended.any():
            self._restart(env_ids[ended])
        if not ended.all():
            self._drive(actions[~ended], env_ids[~ended])
        self._ready = np.concatenate([self._ready, env_ids])

    def _drive(self, actions: Array, env_ids: EnvIds) -> None:
        result = self._world.step(actions, env_ids)
        self._rewards[env_ids] = result.rewards
        self._truncated[env_ids] = result.truncated
        self._terminated[env_ids] = result.dones & ~result.truncated
        self._totals["env_steps"][env_ids] += 1
        self._totals["collisions"][env_ids] += result.collisions
        self._totals["ground_m2"][env_ids] += result.ground_m2

    def _collect(self) -> Rows:
        env_ids, self._ready = np.split(self._ready, [self.batch_size])
        terminated, truncated = self._terminated[env_ids], self._truncated[env_ids]
        return Rows(
            env_ids=env_ids,
            observations=self._world.observe_rows(env_ids),
            rewards=self._rewards[env_ids],
            terminated=terminated,
            truncated=truncated,
            game_over=terminated | truncated,
        )


def make(
    name: str = "rover",
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
) -> RoverVectorEnv:
    """Make `num_envs` simulated rovers.

    Args:
        name: "rover".
        num_envs: rovers.
        batch_size: rows one `recv` returns; None is `num_envs`.
        seeds: environment i gets `seeds + i`, or one seed each; 0..2^31-1.
        threads: at most so many; the simulation needs none but the caller's.

    Raises:
        ValueError: for another name.
    """
    if name != "rover":
        raise ValueError(f"unknown robot {name!r}; {nearest_names(name, ['rover'])}")
    return RoverVectorEnv(Layout.checked(num_envs, batch_size, seeds, threads))
