"""One of an agent's networks with what trains it: gradient and optimizer.

Invariant: a step is taken along the gradient that was kept last, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_cluster.agents.adam import ClippedAdam
from rl_cluster.agents.flat import FlatNetwork
from rl_cluster.agents.team import Team


class Trained:
    """A network, its gradient and its optimizer.

    Args:
      name: its part of the agent.
      network: taken over.
      dtype: of its computations.
      rename: a parameter's name in a checkpoint, of its name in the network.
      epsilon, max_norm: as the optimizer takes them.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        dtype: torch.dtype,
        rename: Callable[[str], str],
        *,
        epsilon: float,
        max_norm: float,
    ) -> None:
        self.name, self._rename = name, rename
        self.flat: FlatNetwork[Any] = FlatNetwork(network, dtype)
        self.optimizer = ClippedAdam(self.flat, epsilon=epsilon, max_norm=max_norm, team=Team(1))
        self._gradient = torch.zeros_like(self.flat.vector)
        self._parts = list(self.flat.named(self._gradient).values())

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a (P,) vector by the names of a checkpoint."""
        views = self.flat.named(vector)
        return {self._rename(name): view for name, view in views.items()}

    def differentiate(self, loss: Tensor) -> Tensor:
        """Keep the gradient of a loss; return its () norm."""
        gradients = torch.autograd.grad(loss, list(self.flat.network.parameters()))
        torch._foreach_copy_(self._parts, list(gradients))
        norm: Tensor = torch.linalg.vector_norm(self._gradient)
        return norm

    def step(self, rate: float, verdict: Tensor) -> None:
        """Go along the gradient that is kept, if the () verdict is finite."""
        self.optimizer.learning_rate.fill_(rate)
        self.optimizer.step([self._gradient], verdict)
