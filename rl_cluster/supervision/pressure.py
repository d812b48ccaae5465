"""Whether the machine is under pressure: figures held against two thresholds each.

Invariant: one figure past its outer threshold is enough for `high`; `low` takes every readable
figure past its inner one; in between nothing moves. What cannot be read is no pressure, but where
nothing at all can be read the load does not grow either. What our own processes use of the CPU is
in no figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rl_cluster.config import PressureConfig

Level = Literal["high", "between", "low"]


@dataclass(frozen=True)
class Reading:
    """What the machine's sensors said at one moment; None: unreadable, or not there."""

    memory_available_share: float | None = None
    """0 to 1; the least of host and each cgroup over us."""
    memory_stall_share: float | None = None
    """0 to 1: time in which somebody waited for memory (PSI `some`, mean of 10 s)."""
    store_used_share: float | None = None
    """0 to 1 of the object store. Our own full replay belongs to it: it was admitted."""
    gpu_memory_free_share: float | None = None
    """0 to 1; of the GPU that has least."""
    disk_free_bytes: int | None = None
    """Where the run directory lies."""
    temperature_c: float | None = None
    """Hottest sensor."""
    others_cpu_share: float | None = None
    """0 to 1 of all cores, used by programs that are not this run's."""


@dataclass(frozen=True)
class Pressure:
    """A judgement, with what led to it."""

    level: Level
    reasons: tuple[str, ...] = ()
    """For `high` the figures past their threshold, for `between` those that stop a step up."""

    def __str__(self) -> str:
        return "; ".join(self.reasons) or f"pressure is {self.level}"


@dataclass(frozen=True)
class _Figure:
    """One figure with the thresholds at which the load steps down, and may step up."""

    name: str
    value: float | None
    down: float
    up: float
    scarce: bool
    """Whether little of it is bad: free memory, free disk."""
    text: Callable[[float], str]

    @property
    def level(self) -> Level:
        if self.value is None:
            return "low"
        sign = -1.0 if self.scarce else 1.0
        if sign * self.value >= sign * self.down:
            return "high"
        calm = self.value >= self.up if self.scarce else self.value < self.up
        return "low" if calm else "between"

    def reason(self, level: Level) -> str:
        """A figure that is not low, its value beside the threshold that it should pass."""
        assert self.value is not None
        side = "at most" if self.scarce else "at least"
        if level == "between":
            side = "below" if self.scarce else "not below"
        bound = self.down if level == "high" else self.up
        return f"{self.name} is {self.text(self.value)}, {side} {self.text(bound)}"


def judge(reading: Reading, thresholds: PressureConfig) -> Pressure:
    """Hold a reading against the thresholds.

    Returns:
      `high`: the load has to step down; `low`: it may step up after its dwell; `between`: neither.
    """
    figures = list(_figures(reading, thresholds))
    if all(figure.value is None for figure in figures):
        return Pressure("between", ("no figure of the machine can be read",))
    levels: tuple[Level, ...] = ("high", "between")
    for level in levels:
        reasons = tuple(figure.reason(level) for figure in figures if figure.level == level)
        if reasons:
            return Pressure(level, reasons)
    return Pressure("low")


def _figures(reading: Reading, at: PressureConfig) -> Iterator[_Figure]:
    yield _Figure(
        "memory available", reading.memory_available_share,
        at.memory_available_low, at.memory_available_high, True, _share,
    )  # fmt: skip
    yield _Figure(
        "time in which somebody waits for memory", reading.memory_stall_share,
        at.memory_stall_high, at.memory_stall_low, False, _share,
    )  # fmt: skip
    yield _Figure(
        "object store in use", reading.store_used_share,
        at.store_used_high, at.store_used_low, False, _share,
    )  # fmt: skip
    yield _Figure(
        "GPU memory free", reading.gpu_memory_free_share,
        at.gpu_memory_free_low, at.gpu_memory_free_high, True, _share,
    )  # fmt: skip
    yield _Figure(
        "disk free", reading.disk_free_bytes,
        at.disk_free_low_bytes, at.disk_free_high_bytes, True, _gigabytes,
    )  # fmt: skip
    yield _Figure(
        "hottest sensor", reading.temperature_c,
        at.temperature_high_c, at.temperature_low_c, False, _celsius,
    )  # fmt: skip
    yield _Figure(
        "CPU used by other programs", reading.others_cpu_share,
        math.inf, at.others_cpu_low, False, _share,  # a busy CPU is slow, but it ends no host
    )  # fmt: skip


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _celsius(value: float) -> str:
    return f"{value:.1f} °C"
