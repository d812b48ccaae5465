"""A run's files of lines as pandas tables.

Invariant: one row a line, in the file's order; a figure that is not known is NaN, never zero.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

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
    columns = list(dict.fromkeys((*_FIRST, *METRICS)))
    rows = (
        row
        for row in read_lines(run_dir / writers.FILE_NAME)
        if task is None or row.get("task") == task
    )
    frame = pandas.DataFrame(rows, columns=columns)
    figures = [column for column in columns if column not in ("time", "task")]
    frame[figures] = frame[figures].astype(float)
    frame["time"] = pandas.to_datetime(frame["time"].astype(float), unit="s", utc=True)
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
