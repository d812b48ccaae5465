"""The acting side of an agent: greedy actions of a network whose weights arrive as flat vectors.

Invariant: acting never changes weights, and weights change only by `load`.
"""

from __future__ import annotations

import numpy as np
import torch

from rl_cluster.agents.flat import load_flat
from rl_cluster.agents.networks import QNetwork


class GreedyPolicy:
    """argmax_a Q(s, a), batched."""

    def __init__(self, network: QNetwork, *, bfloat16: bool) -> None:
        self._network = network.eval().requires_grad_(False)
        self._device = next(network.parameters()).device
        self._bfloat16 = bfloat16

    def load(self, flat: np.ndarray) -> None:
        """Take (P,) float32 weights; ValueError where their number is another network's."""
        load_flat(self._network, flat)

    def actions(self, observations: np.ndarray) -> np.ndarray:
        """(b,) int64 greedy actions of (b, stack, *obs_shape) observations."""
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16),
        ):
            values = self._network(torch.from_numpy(observations).to(self._device))
            actions: np.ndarray = values.argmax(1).cpu().numpy()
            return actions
