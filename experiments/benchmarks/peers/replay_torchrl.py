"""TorchRL's prioritized buffer as a side of B1: tensors, C++ trees, n-step returns while inserting.

Configuration: `TensorDictPrioritizedReplayBuffer` over `LazyTensorStorage` (memory, not a memory
map) with `MultiStepTransform`, whole stacks. Single frames are possible with a `Sequence` sample
unit, but drawing the seven records of each sample took half as long again as this, before any was
stacked, and its n-step returns would be the caller's work.
"""

from __future__ import annotations

import numpy as np
import torch
from replay_side import ALPHA, BATCH, BETA, DISCOUNT, N_STEP, Batch, run
from tape import CHUNK, Chunk
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer
from torchrl.envs.transforms import MultiStepTransform

PACKAGES = ("torchrl", "tensordict", "torch", "numpy")


class TorchrlReplay:
    """`TensorDictPrioritizedReplayBuffer`."""

    heads = 1
    alpha = ALPHA
    differs = "returns cut short by an end bootstrap at terminations, not at truncations"
    tolerance = 0.01

    def __init__(self, capacity: int) -> None:
        self._buffer = TensorDictPrioritizedReplayBuffer(
            alpha=ALPHA,
            beta=BETA,
            storage=LazyTensorStorage(capacity),
            batch_size=BATCH,
            transform=MultiStepTransform(n_steps=N_STEP, gamma=DISCOUNT),
        )

    def insert(self, chunks: list[Chunk]) -> None:
        """Extend by one run; the transform keeps its last steps until the next one comes."""
        (chunk,) = chunks

        def column(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array))[:, None]

        after = {
            "pixels": torch.from_numpy(chunk.frames[chunk.rows_t]),
            "reward": column(chunk.rewards),
            "terminated": column(chunk.terminated),
            "truncated": column(chunk.truncated),
            "done": column(chunk.terminated | chunk.truncated),
        }
        before = {
            "pixels": torch.from_numpy(chunk.frames[chunk.rows_tm1]),
            "action": torch.from_numpy(chunk.actions),
        }
        self._buffer.extend(TensorDict({**before, "next": TensorDict(after, [CHUNK])}, [CHUNK]))

    def sample(self) -> tuple[Batch, torch.Tensor]:
        """Draw."""
        drawn = self._buffer.sample()
        batch = Batch(
            drawn["pixels"],
            drawn["action"],
            drawn["next", "reward"][:, 0],
            DISCOUNT ** drawn["steps_to_next_obs"] * drawn["nonterminal"],
            drawn["next", "pixels"],
            drawn["priority_weight"],
        )
        return batch, drawn["index"]

    def update(self, where: torch.Tensor, priorities: np.ndarray) -> None:
        """Set priorities."""
        self._buffer.update_priority(where, torch.from_numpy(priorities))


if __name__ == "__main__":
    run(TorchrlReplay, PACKAGES)
