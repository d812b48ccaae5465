"""The acting side of soft actor-critic: deterministic actions, one row at a time, with memory.

Invariant: acting never changes weights, and weights change only by `load` and `load_named`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rl_cluster.agents.flat import FlatNetwork
from rl_cluster.agents.sac_networks import MEMORY, Actor, SACShape, build_actor

PREFIX = "actor."
"""Of the policy's tensors in a checkpoint."""


class RecurrentPolicy:
    """tanh of the policy's mean, batched, float32 on the host."""

    def __init__(self, shape: SACShape) -> None:
        self._flat = FlatNetwork(build_actor(shape).eval().requires_grad_(False), torch.float32)

    @property
    def actor(self) -> Actor:
        """The network with the weights as they are now."""
        return self._flat.network

    def load(self, flat: np.ndarray) -> None:
        """Take (P,) float32 weights as published; ValueError where they are another network's."""
        self._flat.load(flat)

    def load_named(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the `actor.` tensors of a checkpoint's model.

        Raises:
          ValueError: one is missing or has another shape; nothing was changed.
        """
        own = self._flat.named(self._flat.vector)
        for name, tensor in own.items():
            given = tensors.get(PREFIX + name)
            if given is None or given.shape != tensor.shape:
                found = "nothing" if given is None else tuple(given.shape)
                raise ValueError(
                    f"the checkpoint does not fit this policy at {PREFIX}{name}: it has {found}, "
                    f"expected {tuple(tensor.shape)}. Use the configuration that it was made with"
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[PREFIX + name])

    def start(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, 256) float32 hx and cx at the start of an episode."""
        return np.zeros((rows, MEMORY), np.float32), np.zeros((rows, MEMORY), np.float32)

    def __call__(
        self, observations: np.ndarray, hx: np.ndarray, cx: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Act at one row of each environment.

        Args:
          observations: (n, ROW) float32. hx, cx: (n, 256) float32 as the last call returned them,
            zeros where an episode starts.

        Returns:
          (n, A) float32 actions, and hx and cx behind them.
        """
        with torch.inference_mode():
            bev, proprio = self.actor.trunk.split(torch.from_numpy(observations))
            state = torch.from_numpy(hx), torch.from_numpy(cx)
            actions, hx_out, cx_out = self.actor(bev, proprio, *state)
        return actions.numpy(), hx_out.numpy(), cx_out.numpy()
