"""Frame stacks for acting: the last `depth` observations of each environment.

Invariant: a stack never mixes two episodes. At a reset observation all `depth` places hold that
observation, and the replay's gather rebuilds the same stack from single frames. EnvPool's own
stacks do the same where a game starts; after a lost life they keep the frames of the life before.
"""

from __future__ import annotations

import numpy as np


class FrameStack:
    """The stacks of `num_envs` environments, updated in place as their observations arrive."""

    def __init__(
        self, num_envs: int, depth: int, obs_shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.stacks = np.zeros((num_envs, depth, *obs_shape), dtype)
        """(num_envs, depth, *obs_shape): as they are now."""

    def push(self, env_ids: np.ndarray, observations: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Append one observation to the stacks of `env_ids` and return those stacks.

        Args:
          env_ids: (b,) int64, distinct.
          observations: (b, *obs_shape), the newest observation of each.
          first: (b,) bool, true where it is a reset observation.

        Returns:
          (b, depth, *obs_shape) in fresh memory, oldest first, newest last.
        """
        stacks: np.ndarray = self.stacks[env_ids]
        stacks[:, :-1] = stacks[:, 1:]
        stacks[:, -1] = observations
        if first.any():
            stacks[first] = observations[first, None]
        self.stacks[env_ids] = stacks
        return stacks
