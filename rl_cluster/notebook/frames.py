"""A run's files of lines as pandas tables.

Invariant: one row a line, in the file's order; a figure that is not known is NaN, never zero.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, fields
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_cluster.notebook.extra import needs
from rl_cluster.telemetry import writers
from rl_cluster.telemetry.incidents import Incident, read_incidents
from rl_cluster.telemetry.jsonl import read_lines
from rl_cluster.telemetry.metrics import METRICS

if TYPE_CHECKING:
    import pandas

_FIRST = ("time", "wall_s", "task", "env_steps")


def metrics_frame(run_dir: Path, task: str | None) -> pandas.DataFrame:
    """RUN/metrics.jsonl: the rows of one task, or all.

    Raises:
      ModuleNotFoundError: pandas is not installed.
      ValueError: a line is damaged; the message names it.
    """
    with needs("notebook"):
        import pandas
    # Weeks of rows as objects would take gigabytes of the machine that the run is on.
    names = dict.fromkeys((*_FIRST, *METRICS))
    columns: dict[str, Any] = {name: array("d") for name in names} | {"task": []}
    for row in read_lines(run_dir / writers.FILE_NAME):
        if task is None or row.get("task") == task:
            for name, column in columns.items():
                value = row.get(name)
                column.append(value if name == "task" else nan if value is None else float(value))
    frame = pandas.DataFrame(columns)
    frame["task"] = frame["task"].astype(object)
    frame["time"] = pandas.to_datetime(frame["time"], unit="s", utc=True)
    return frame


def incidents_frame(run_dir: Path) -> pandas.DataFrame:
    """RUN/incidents.jsonl.

    Raises:
      ModuleNotFoundError: pandas is not installed.
      ValueError: a line is damaged; the message names it.
    """
    with needs("notebook"):
        import pandas
    columns = [field.name for field in fields(Incident)]
    frame = pandas.DataFrame(map(asdict, read_incidents(run_dir)), columns=columns)
    frame["time"] = pandas.to_datetime(frame["time"].astype(float), unit="s", utc=True)
    return frame
