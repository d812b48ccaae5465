"""Stable-Baselines3's n-step buffer as a side of B1: uniform, whole stacks, plain numpy.

Configuration: `NStepReplayBuffer`, the only one of its buffers that makes n-step returns; it
refuses `optimize_memory_usage`. Eight environments a step. It has no priorities, so its iteration
lacks their update.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from replay_side import BATCH, DISCOUNT, N_STEP, Batch, run
from stable_baselines3.common.buffers import NStepReplayBuffer
from tape import CHUNK, ENVIRONMENTS, STACK, Chunk

PACKAGES = ("stable-baselines3", "torch", "numpy")


class Sb3Replay:
    """`NStepReplayBuffer`."""

    heads = ENVIRONMENTS
    alpha = 0.0
    differs = "the newest transitions have fewer steps"
    tolerance = 0.01

    def __init__(self, capacity: int) -> None:
        self._buffer = NStepReplayBuffer(
            capacity,
            spaces.Box(0, 255, (STACK, 84, 84), np.uint8),
            spaces.Discrete(6),
            device="cpu",
            n_envs=ENVIRONMENTS,
            n_steps=N_STEP,
            gamma=DISCOUNT,
        )

    def insert(self, chunks: list[Chunk]) -> None:
        """Add one step of all environments at a time."""
        for step in range(CHUNK // ENVIRONMENTS):
            ends = [(chunk.terminated[step], chunk.truncated[step]) for chunk in chunks]
            self._buffer.add(
                np.stack([chunk.frames[chunk.rows_tm1[step]] for chunk in chunks]),
                np.stack([chunk.frames[chunk.rows_t[step]] for chunk in chunks]),
                np.array([chunk.actions[step] for chunk in chunks]),
                np.array([chunk.rewards[step] for chunk in chunks]),
                np.array([terminated or truncated for terminated, truncated in ends]),
                [{"TimeLimit.truncated": truncated} for _, truncated in ends],
            )

    def sample(self) -> tuple[Batch, None]:
        """Draw uniformly."""
        drawn = self._buffer.sample(BATCH)
        assert drawn.discounts is not None
        batch = Batch(
            drawn.observations,
            drawn.actions[:, 0],
            drawn.rewards[:, 0],
            (drawn.discounts * (1 - drawn.dones))[:, 0],
            drawn.next_observations,
            None,
        )
        return batch, None

    def update(self, where: None, priorities: np.ndarray) -> None:
        """It has no priorities."""


if __name__ == "__main__":
    run(Sb3Replay, PACKAGES)
