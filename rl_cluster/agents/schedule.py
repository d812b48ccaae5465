"""How step sizes fall with the number of updates.

Invariant: a pure function of settings and updates, so a resume goes on where it was.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol


class Schedule(Protocol):
    """The part of an agent's settings that says how its learning rates fall."""

    @property
    def schedule(self) -> Literal["constant", "cosine", "step"]:
        """Which curve."""

    @property
    def schedule_updates(self) -> int:
        """Updates that a cosine lasts, or between two steps."""

    @property
    def schedule_factor(self) -> float:
        """The cosine's last share of the first rate, or each step's of the one before."""


def scheduled(rate: float, settings: Schedule, updates: int) -> float:
    """Step size after so many updates: constant, cosine (Loshchilov & Hutter 2017) or by steps."""
    if settings.schedule == "constant":
        return rate
    if settings.schedule == "step":
        drops = updates // settings.schedule_updates
        return float(rate * settings.schedule_factor**drops)
    progress = min(1.0, updates / settings.schedule_updates)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    floor = settings.schedule_factor
    return rate * (floor + (1 - floor) * share)
