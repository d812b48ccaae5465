"""The Nature network (Mnih et al. 2015) that every peer of the rollout row acts with.

None of them brings one that takes bytes and computes in bfloat16, as ours does, so all get this
one: the row compares how environments are stepped, not whose network is cheaper. Invariant: its
weights follow torch's seed as our network's do, so both give the same values; it tells what it saw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rollout_seen import EPSILON, SEED, Seen, probe
from torch import Tensor, nn


class NatureNetwork(nn.Module):
    """Action values of stacks of four frames.

    Args:
      num_actions: A.
    """

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        first = nn.Conv2d(4, 32, 8, 4)
        self.layers = nn.Sequential(
            first, nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions),
        )  # fmt: skip
        with torch.no_grad():
            first.weight /= 255.0  # instead of every pixel
        self.requires_grad_(False).to(torch.bfloat16)
        self.num_actions = num_actions
        self._seen = Seen()

    def forward(self, observations: Tensor) -> Tensor:
        """(b, A) float32 action values of (b, 4, 84, 84) uint8 observations."""
        self._seen.add(observations.numpy())
        return self._values(observations)

    def facts(self) -> dict[str, Any]:
        """What the benchmark checks: what arrived here, and the values of fixed observations."""
        return {**self._seen.facts(), "values": self._values(torch.from_numpy(probe())).tolist()}

    def _values(self, observations: Tensor) -> Tensor:
        with torch.inference_mode():
            values: Tensor = self.layers(observations.to(torch.bfloat16)).float()
            return values


class EpsilonGreedy:
    """Actions of a network, each replaced by a uniform one with probability `EPSILON`."""

    def __init__(self, network: NatureNetwork) -> None:
        self._network, self._rng = network, np.random.default_rng(SEED)

    def actions(self, observations: np.ndarray) -> np.ndarray:
        """(b,) int64 actions of (b, 4, 84, 84) uint8 observations."""
        greedy = self._network(torch.from_numpy(observations)).argmax(1).numpy()
        explore = self._rng.random(len(greedy)) < EPSILON
        uniform = self._rng.integers(self._network.num_actions, size=len(greedy))
        chosen: np.ndarray = np.where(explore, uniform, greedy)
        return chosen
