"""What an update found, whichever agent took it, and how it reaches the host.

Invariant: numbers come to the host in one copy, and only `result` waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rl_cluster.agents.captured import in_host_memory


@dataclass(frozen=True)
class Update:
    """What an update found."""

    td_errors: Tensor
    """(B,) float32, detached, in host memory."""
    loss: float
    q_mean: float
    gradient_norm: float
    others: Mapping[str, float] = field(default_factory=dict)
    """What only this kind of agent tells, by name."""


class SkippedBatch(ArithmeticError):
    """The batch, its loss or its gradient was not finite; nothing was changed."""


class PendingUpdate:
    """An update under way on its device.

    Args:
      found: (3 + len(others) + B,) float32 on the device: loss, mean value, gradient norm, the
        others, TD errors.
      others: names of what only this kind of agent tells.
    """

    def __init__(self, found: Tensor, others: tuple[str, ...] = ()) -> None:
        self._others = others
        self._found, self._ready = in_host_memory(found)

    def result(self) -> Update:
        """Wait for the device.

        Raises:
          SkippedBatch: something was not finite; nothing was changed.
        """
        self._ready()
        size = 3 + len(self._others)
        loss, q_mean, norm, *values = self._found[:size].tolist()
        others = dict(zip(self._others, values, strict=True))
        if not all(math.isfinite(value) for value in (loss, norm, *values)):
            told = {"loss": loss, "gradient norm": norm, **others}
            raise SkippedBatch(", ".join(f"{name} {value}" for name, value in told.items()))
        return Update(self._found[size:], loss, q_mean, norm, others)
