"""Rows of figures, and what takes them.

Invariant: a valid row names only metrics of the table, each of the row's own scope, and a task's
has its place on the x-axis.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rl_cluster.extras import how_to_install
from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.metrics import metric_named

_COLUMNS = ("time", "wall_s", "task", "env_steps")


@dataclass(frozen=True)
class Row:
    """Figures of one task, or of the run, at one moment."""

    time_s: float
    """Unix seconds."""
    wall_s: float
    """Seconds the run has been at work."""
    task: str | None
    """None: figures of the whole run."""
    env_steps: int | None
    """Steps of the task; None for the run."""
    values: Mapping[str, float | None]
    """By metric name; None or not finite: not known."""

    @property
    def known_values(self) -> dict[str, float]:
        """The values that are finite numbers."""
        return {
            name: float(value)
            for name, value in self.values.items()
            if value is not None and math.isfinite(value)
        }

    @property
    def step(self) -> int:
        """Its place on the x-axis of charts: frames of a task, seconds of the run."""
        return int(self.wall_s) if self.task is None else int(self.values["env_frames"] or 0)

    def check_valid(self) -> None:
        """Raise ValueError for an unknown metric, a wrong scope, or no place on the x-axis."""
        scope = "run" if self.task is None else "task"
        for name in self.values:
            metric = metric_named(name)
            if metric.scope != scope:
                raise ValueError(
                    f"metric {name!r} belongs to a {metric.scope}, but the row is of "
                    f"{'the run' if self.task is None else f'task {self.task!r}'}"
                )
        has_place = self.env_steps is not None and self.values.get("env_frames") is not None
        if self.task is not None and not has_place:
            raise ValueError(
                f"a row of task {self.task!r} needs env_steps and the value env_frames: charts are "
                "drawn against them"
            )

    def to_columns(self) -> dict[str, Any]:
        """As a line of metrics.jsonl has it; `wall_s` and `env_steps` are columns of every row."""
        columns = (self.time_s, self.wall_s, self.task, self.env_steps)
        return {**self.values, **dict(zip(_COLUMNS, columns, strict=True))}

    @staticmethod
    def from_columns(columns: Mapping[str, Any]) -> Row:
        """The row of a line of metrics.jsonl; KeyError where a column is missing."""
        time_s, wall_s, task, env_steps = (columns[name] for name in _COLUMNS)
        values = {name: value for name, value in columns.items() if name not in _COLUMNS}
        return Row(time_s, wall_s, task, env_steps, values)


class Sink(Protocol):
    """One place that rows and incidents go to."""

    def write(self, row: Row) -> None:
        """Take one valid row."""

    def incident(self, incident: Incident) -> None:
        """Take one valid incident."""

    def flush(self) -> None:
        """Hand on what is still held back."""

    def close(self) -> None:
        """Flush and let go; harmless when repeated."""


def extra(module: str, name: str) -> Any:
    """A module of a package that comes with an extra.

    Raises:
      ModuleNotFoundError: it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: {how_to_install(name)}, or set telemetry.{name}: false"
        ) from error
