"""What a run's files say of a fleet at one moment, gathered for the watch page.

Invariant: nothing but files is asked and none is written, so that an ended run can be watched as a
live one can. What is missing or damaged is an empty part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_cluster.field_report import directory, file_name, read_status
from rl_cluster.policy_shelf import PolicyRecord, PolicyShelf
from rl_cluster.telemetry.summary import (
    Stream,
    Summary,
    SummaryError,
    TaskSummary,
    is_stale,
    read_summary,
)

QUIET_S = 10.0
"""Without news for longer, a rover, a stream or its reader counts as silent."""


@dataclass(frozen=True)
class FleetFiles:
    """A fleet's files, as they were read."""

    task_dir: Path
    now_s: float
    """When they were read, unix seconds."""
    summary: Summary | None
    status: Mapping[str, Any]
    """What the reader wrote; empty: nothing yet."""
    status_age_s: float | None
    """Since the reader wrote; None: it has not."""
    policies: Sequence[PolicyRecord]
    """That were sent, newest first."""

    @property
    def task(self) -> TaskSummary | None:
        """The fleet's part of the summary."""
        return None if self.summary is None else self.summary["tasks"].get(self.task_dir.name)

    @property
    def stream(self) -> Stream | None:
        """Its stream there."""
        return None if self.task is None else self.task.get("stream")

    @property
    def rovers(self) -> list[dict[str, Any]]:
        """One record a rover, by name; the fields of `RoverStatus`."""
        found: list[dict[str, Any]] = self.status.get("rovers", [])
        return found

    @property
    def stale(self) -> bool:
        """Whether the run died without a word."""
        return self.summary is not None and is_stale(self.summary, self.now_s)

    @property
    def live(self) -> bool:
        """Whether the run is at work, as far as is known."""
        return self.summary is not None and self.summary["state"] == "running" and not self.stale

    @property
    def reader_speaks(self) -> bool:
        """Whether what it wrote is new."""
        return self.status_age_s is not None and self.status_age_s <= QUIET_S

    @property
    def sent_version(self) -> int | None:
        """The newest policy that rovers were told of."""
        newest = self.policies[0].version if self.policies else None
        return newest if self.stream is None else self.stream["sent_version"] or newest

    def age_now_s(self, age_s: float | None) -> float | None:
        """An age that the reader wrote, as of now: it goes on while the reader is silent."""
        return None if age_s is None else age_s + (self.status_age_s or 0.0)


def read_files(task_dir: Path, now_s: float) -> FleetFiles:
    """Read the files of RUN/TASK."""
    summary = _summary(task_dir.parent)
    shelf = task_dir / "policies"
    policies = PolicyShelf(shelf, keep=1).records() if shelf.is_dir() else []
    written_s = modified_s(directory(task_dir) / "status.json")
    status = read_status(task_dir)
    age_s = None if written_s is None or status is None else max(0.0, now_s - written_s)
    return FleetFiles(task_dir, now_s, summary, status or {}, age_s, policies[::-1])


def modified_s(path: Path) -> float | None:
    """When a file was written, unix seconds; None: it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def view_file(task_dir: Path, rover: str) -> Path:
    """The picture of what a rover, one that the reader named, saw last; it may be missing."""
    return directory(task_dir) / f"{file_name(rover)}.png"


def find_fleet(run_dir: Path, task: str | None) -> Path:
    """RUN/TASK of the fleet to watch.

    Args:
      task: its name; None: the only one.

    Raises:
      FileNotFoundError: there is no such run, or no such task.
      ValueError: there are several, and none was named.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is no run directory: it does not exist")
    fleets = _fleets(run_dir)
    if task is not None and task not in fleets:
        names = ", ".join(fleets) or "none so far"
        raise FileNotFoundError(f"{run_dir} has no task {task!r} with rovers; there are: {names}")
    if task is None and len(fleets) > 1:
        raise ValueError(f"{run_dir} has several tasks with rovers; name one: {', '.join(fleets)}")
    if not fleets:
        raise FileNotFoundError(
            f"{run_dir} has no task with rovers: it trains games, or has only just begun"
        )
    return run_dir / (task or fleets[0])


def _fleets(run_dir: Path) -> list[str]:
    """Tasks with rovers, by what summary and readers wrote."""
    summary = _summary(run_dir)
    tasks = {} if summary is None else summary["tasks"]
    written = {path.parent.parent.name for path in run_dir.glob("*/rovers/status.json")}
    return sorted(written | {name for name, task in tasks.items() if "stream" in task})


def _summary(run_dir: Path) -> Summary | None:
    try:
        return read_summary(run_dir)
    except (OSError, SummaryError):
        return None
