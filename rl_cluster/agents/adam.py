"""Adam on one vector of parameters, with its gradient scaled down to a norm.

Invariant: a step happens whole or not at all. A loss or a gradient that is not finite leaves
parameters and moments as they were, and the device decides that without waiting for anyone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from rl_cluster.agents.flat import FlatNetwork
from rl_cluster.agents.team import Team

BETA_1, BETA_2 = 0.9, 0.999


class ClippedAdam:
    """Kingma & Ba 2015, algorithm 1, after Pascanu et al. 2013, algorithm 1 (clipping).

    Args:
      parameters: what is optimized.
      epsilon: added to the root of the second moment.
      max_norm: of the gradient.
      team: its threads take equal parts of the vector.
    """

    def __init__(
        self, parameters: FlatNetwork[Any], *, epsilon: float, max_norm: float, team: Team
    ) -> None:
        self._parameters, self._team = parameters, team
        self._epsilon, self._max_norm = epsilon, max_norm
        vector = parameters.vector
        # All of it now, so that a full device fails at the start, not later.
        self.moments = {key: torch.zeros_like(vector) for key in ("exp_avg", "exp_avg_sq")}
        self.learning_rate = torch.zeros((), device=vector.device)
        self.taken = torch.zeros((), device=vector.device)
        """() float32: 1 if the last step was taken, 0 if it was refused."""
        bounds = [len(vector) * i // team.size for i in range(team.size + 1)]
        self._parts = [
            (slice(start, end), torch.zeros((), device=vector.device))
            for start, end in zip(bounds, bounds[1:], strict=False)
        ]

    @property
    def steps(self) -> Tensor:
        """() float32: steps taken."""
        return self._parts[0][1]

    @steps.setter
    def steps(self, steps: Tensor) -> None:
        for _, own in self._parts:
            own.copy_(steps)

    def step(self, gradients: list[Tensor], loss: Tensor) -> Tensor:
        """Take one step along the sum of gradients, if it and the loss are finite.

        Args:
          gradients: (P,) float32 each; the first is used up.
          loss: () float32, only looked at.

        Returns:
          () float32 norm of the whole gradient before it was scaled.
        """

        def add_up(part: tuple[slice, Tensor]) -> Tensor:
            own = gradients[0][part[0]]
            for gradient in gradients[1:]:
                own += gradient[part[0]]
            norm: Tensor = torch.linalg.vector_norm(own)
            return norm

        norm: Tensor = torch.linalg.vector_norm(torch.stack(self._team.map(add_up, self._parts)))
        self.taken.copy_(norm.isfinite() & loss.isfinite())
        scale = (norm / self._max_norm).clamp(min=1.0)

        def apply(part: tuple[slice, Tensor]) -> None:
            self._apply(gradients[0], *part, scale, 1.0 - self.taken)

        self._team.map(apply, self._parts)
        return norm

    @torch.no_grad()
    def _apply(
        self, gradient: Tensor, part: slice, steps: Tensor, divisor: Tensor, refused: Tensor
    ) -> None:
        adam(
            [self._parameters.vector[part]],
            [gradient[part]],
            [self.moments["exp_avg"][part]],
            [self.moments["exp_avg_sq"][part]],
            [],
            [steps],
            fused=True,
            grad_scale=divisor,
            found_inf=refused,
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self._epsilon,
            maximize=False,
        )
        self._parameters.refresh(part)
