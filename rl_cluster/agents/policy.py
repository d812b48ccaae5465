"""The acting side of an agent: greedy actions of a network whose weights arrive as flat vectors.

Invariant: acting never changes weights, and weights change only by `load`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rl_cluster.agents.flat import FlatNetwork
from rl_cluster.agents.networks import QNetwork


class GreedyPolicy:
    """argmax_a Q(s, a), batched."""

    def __init__(self, network: QNetwork, *, bfloat16: bool) -> None:
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._flat = FlatNetwork(network.eval().requires_grad_(False), dtype)
        self._device = self._flat.vector.device

    def load(self, flat: np.ndarray) -> None:
        """Take (P,) float32 weights; ValueError where their number is another network's."""
        self._flat.load(flat)

    def weights(self) -> np.ndarray:
        """(P,) float32 copy of the weights, as `load` takes them."""
        vector: np.ndarray = self._flat.vector.cpu().numpy().copy()
        return vector

    def load_named(self, tensors: Mapping[str, Tensor]) -> None:
        """Take float32 weights by parameter name; KeyError or RuntimeError where one differs."""
        for name, own in self._flat.named(self._flat.vector).items():
            own.copy_(tensors[name])
        self._flat.refresh()

    def actions(self, observations: np.ndarray) -> np.ndarray:
        """(b,) int64 greedy actions of (b, stack, *obs_shape) observations."""
        with torch.inference_mode():
            values = self._flat.network(torch.from_numpy(observations).to(self._device))
            actions: np.ndarray = values.argmax(1).cpu().numpy()
            return actions
