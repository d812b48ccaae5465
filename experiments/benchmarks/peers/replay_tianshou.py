"""Tianshou's prioritized buffer as a side of B1: numpy arrays, trees compiled by numba.

Configuration, the one of its Atari examples: one sub-buffer an environment, single frames stacked
when they are read (`stack_num`, `save_only_last_obs`), no next observations (`ignore_obs_next`).
What its DQN does with a sample is `Algorithm.compute_nstep_return`; we call that, with a target
function that takes the stacks after n steps, but draw indices alone: `sample` would also assemble
the stacks after one step, which nobody reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from replay_side import ALPHA, BATCH, BETA, DISCOUNT, N_STEP, Batch, run
from tape import CHUNK, ENVIRONMENTS, STACK, Chunk
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.data import Batch as TianshouBatch
from tianshou.data import PrioritizedVectorReplayBuffer

PACKAGES = ("tianshou", "torch", "numpy", "numba")


class TianshouReplay:
    """`PrioritizedVectorReplayBuffer`, with the n-step returns of `Algorithm`."""

    heads = ENVIRONMENTS
    alpha = ALPHA
    differs = "the oldest three of an environment repeat frames, the newest have fewer steps"
    tolerance = 0.02

    def __init__(self, capacity: int) -> None:
        self._buffer = PrioritizedVectorReplayBuffer(
            capacity, ENVIRONMENTS, alpha=ALPHA, beta=BETA,
            stack_num=STACK, save_only_last_obs=True, ignore_obs_next=True,
        )  # fmt: skip

    def insert(self, chunks: list[Chunk]) -> None:
        """Add one step of all environments at a time."""
        for step in range(CHUNK // ENVIRONMENTS):
            frames = np.stack([chunk.frames[chunk.rows_tm1[step, -1]] for chunk in chunks])
            columns = {
                name: np.array([getattr(chunk, source)[step] for chunk in chunks])
                for name, source in (
                    ("act", "actions"), ("rew", "rewards"),
                    ("terminated", "terminated"), ("truncated", "truncated"),
                )
            }  # fmt: skip
            self._buffer.add(TianshouBatch(obs=frames[:, None], **columns))

    def sample(self) -> tuple[Batch, np.ndarray]:
        """Draw indices, then read their stacks and returns."""
        buffer = self._buffer
        indices: np.ndarray = buffer.sample_indices(BATCH)
        after: list[np.ndarray] = []

        def target(buffer: Any, last: np.ndarray) -> torch.Tensor:
            after.append(buffer.get(buffer.next(last), "obs"))
            # A value of 0 leaves the return alone, one of 1 adds the discount of the bootstrap.
            return torch.tensor([0.0, 1.0]).repeat(len(last), 1)

        drawn = TianshouBatch(act=buffer.act[indices])
        found = Algorithm.compute_nstep_return(drawn, buffer, indices, target, DISCOUNT, N_STEP)
        r_t = found.returns[:, 0].contiguous()
        weights = buffer.get_weight(indices)
        batch = Batch(
            buffer.get(indices, "obs"), drawn.act, r_t, found.returns[:, 1] - r_t, after[0],
            weights / weights.max(),
        )  # fmt: skip
        return batch, indices

    def update(self, where: np.ndarray, priorities: np.ndarray) -> None:
        """Set priorities."""
        self._buffer.update_weight(where, priorities)


if __name__ == "__main__":
    run(TianshouReplay, PACKAGES)
