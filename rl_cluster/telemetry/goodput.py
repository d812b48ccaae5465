"""Goodput: what a run has to show for the time, and the money, since it was first started.

Invariant: all time from the first start to the last sign of life counts, pauses and downtime
included, and steps that were lost with a crash and done again count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_HOUR_S = 3600.0


class StepCount:
    """Environment steps of one task, as the rows of its metrics tell them."""

    def __init__(self) -> None:
        self.useful = 0
        """Those that the surviving policy has behind it."""
        self.repeated = 0
        """Those that were lost, and had to be done again."""

    def add(self, env_steps: int) -> None:
        """Take the next row's figure: less than before where a resume went back."""
        self.repeated += max(0, self.useful - env_steps)
        self.useful = env_steps


@dataclass(frozen=True)
class TaskGoodput:
    """What came of one task."""

    useful: int
    """Env steps."""
    repeated: int
    """Env steps."""
    per_hour: float
    """Useful env steps."""
    per_cost: float | None
    """Useful env steps for one unit of money; None: no price is known."""


@dataclass(frozen=True)
class Goodput:
    """What came of a run."""

    span_s: float
    """From the first start to the last sign of life."""
    work_s: float
    """Of those, at work: the sum of its sessions."""
    cost: float | None
    tasks: Mapping[str, TaskGoodput]
    """Each beside the time, and the cost, of the whole run."""
    whole: TaskGoodput
    """Of all tasks together."""


def goodput(
    steps: Mapping[str, StepCount],
    span_s: tuple[float, float] | None,
    work_s: float,
    hourly: float | None,
) -> Goodput | None:
    """Return what came of a run; None where nothing is known of its time.

    Args:
      steps: of each task.
      span_s: first start and last sign of life, Unix seconds.
      work_s: seconds at work.
      hourly: price of the machine; a run that rests costs as much as one that works.
    """
    if span_s is None or span_s[1] <= span_s[0]:
        return None
    length_s = span_s[1] - span_s[0]
    hours = length_s / _HOUR_S
    cost = None if hourly is None else hours * hourly

    def came(counts: Iterable[StepCount]) -> TaskGoodput:
        kept = list(counts)
        useful = sum(count.useful for count in kept)
        repeated = sum(count.repeated for count in kept)
        return TaskGoodput(
            useful, repeated, useful / hours, None if cost is None else useful / cost
        )

    tasks = {name: came([count]) for name, count in steps.items()}
    return Goodput(length_s, work_s, cost, tasks, came(steps.values()))
