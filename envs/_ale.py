"""ale-py's C++ vector environment behind `AsyncVectorEnv`: the second Atari backend.

Invariant: `send` answers exactly the rows of the last `recv`; ale-py has no other way to say
which environment an action is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from envs.base import Array, AsyncVectorEnv, EnvIds, Layout, Rows


class AleVectorEnv(AsyncVectorEnv):
    """ale-py's Atari: single frames, whole games (see `envs.atari` for lost lives)."""

    def __init__(self, rom: str, layout: Layout, options: Mapping[str, Any]) -> None:
        """Build the vector environment.

        Args:
            rom: ale-py's name of the game, e.g. "ms_pacman".
            layout: sizes and seeds; 0 threads are min(batch_size, processors), and ale-py never
                starts more threads than there are processors.
            options: ale-py's own options, already checked.
        """
        config = {
            **options,
            "num_envs": layout.num_envs,
            "batch_size": layout.batch_size,
            "num_threads": layout.threads,
            "stack_num": 1,
            "grayscale": True,
            "reward_clipping": False,
        }
        self._envs: Any = AtariVectorEnv(rom, **config)
        _, *frame_shape = self._envs.ale.get_observation_shape()
        super().__init__(
            layout=layout,
            observation_space=spaces.Box(0, 255, frame_shape, np.uint8),
            action_space=self._envs.single_action_space,
            frame_skip=config["frameskip"],
            config=config,
        )
        self._reseed(layout.seeds)
        self._first_batch: Rows | None = None
        self._last_ids: EnvIds = np.arange(0)

    def _reseed(self, seeds: Sequence[int]) -> None:
        self._seeds: Array | None = np.asarray(seeds, dtype=np.int64)

    def _start(self) -> None:
        # ale-py's reset() starts all environments and returns the first batch of rows.
        observations, info = self._envs.reset(seed=self._seeds)
        self._seeds = None
        nothing = np.zeros(self.batch_size, dtype=bool)
        self._first_batch = self._rows(observations, nothing, nothing, nothing, info)

    def _collect(self) -> Rows:
        rows, self._first_batch = self._first_batch, None
        if rows is None:
            rows = self._rows(*self._envs.recv())
        self._last_ids = rows.env_ids
        return rows

    def _rows(
        self,
        observations: Array,
        rewards: Array,
        terminated: Array,
        truncated: Array,
        info: Mapping[str, Array],
    ) -> Rows:
        return Rows(
            env_ids=info["env_id"].astype(np.int64),
            observations=observations[:, 0],
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            game_over=terminated | truncated,
        )

    def _dispatch(self, actions: Array, env_ids: EnvIds) -> None:
        # Both are permutations of the same ids: sort one, un-sort by the other.
        order = np.empty_like(env_ids)
        order[np.argsort(self._last_ids)] = np.argsort(env_ids)
        if not np.array_equal(env_ids[order], self._last_ids):
            raise ValueError(
                f"the ale backend needs an action for each row of the last recv() (env_ids "
                f"{self._last_ids}), got env_ids {env_ids}"
            )
        self._envs.send(actions[order].astype(np.int64))

    def close_extras(self, **kwargs: Any) -> None:
        """Join ale-py's threads and free the emulators."""
        self._envs = None
