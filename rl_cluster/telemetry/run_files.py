"""What a run directory tells, gathered for the report.

Invariant: only files of the directory are read, and a missing one is an empty part: a run that was
cut short still has its report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl_cluster import boot_journal
from rl_cluster.telemetry import writers
from rl_cluster.telemetry.charts import Curve
from rl_cluster.telemetry.goodput import StepCount
from rl_cluster.telemetry.incidents import Incident, read_incidents
from rl_cluster.telemetry.jsonl import read_lines
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.summary import Summary, read_summary


@dataclass
class TaskFiles:
    """What is known of one task."""

    curves: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    """By metric name, against env_frames."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Lines of evaluations.jsonl, oldest first."""
    videos: list[Path] = field(default_factory=list)
    """Oldest first."""
    steps: StepCount = field(default_factory=StepCount)


@dataclass
class RunFiles:
    """What is known of a run."""

    directory: Path
    summary: Summary | None
    """None where the run ended before it wrote one."""
    tasks: dict[str, TaskFiles]
    incidents: list[Incident]
    differences: list[Mapping[str, Any]]
    """Rows of effective.yaml: setting, requested, effective, reason."""
    configuration: str
    """Text of config.yaml."""
    effective: str
    """Text of effective.yaml."""
    span_s: tuple[float, float] | None
    """First start and last sign of life, Unix seconds; None where nothing says."""


def read_run(directory: Path) -> RunFiles:
    """Gather the files of a run directory.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: a file is there but damaged; the message names it.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no run directory: it does not exist")
    summary = _summary(directory)
    tasks = {name: TaskFiles() for name in summary["tasks"]} if summary else {}
    times_s = [*_read_metrics(directory, tasks), *_boots_s(directory)]
    times_s += [summary["updated_at"]] if summary else []
    _read_evaluations(directory, tasks)
    effective = _text(directory / "effective.yaml")
    return RunFiles(
        directory=directory,
        summary=summary,
        tasks=tasks,
        incidents=read_incidents(directory),
        differences=_differences(effective, directory / "effective.yaml"),
        configuration=_text(directory / "config.yaml"),
        effective=effective,
        span_s=(min(times_s), max(times_s)) if times_s else None,
    )


def _summary(directory: Path) -> Summary | None:
    try:
        return read_summary(directory)
    except FileNotFoundError:
        return None


def _read_metrics(directory: Path, tasks: dict[str, TaskFiles]) -> tuple[float, ...]:
    """Fill in curves and steps; return the times of the earliest row and of the latest."""
    times_s: tuple[float, ...] = ()
    for row in read_lines(directory / writers.FILE_NAME):
        if (time_s := row.get("time")) is not None:
            times_s = (min([*times_s, time_s]), max([*times_s, time_s]))
        name, frames = row.get("task"), row.get("env_frames")
        if name is None or frames is None:
            continue
        task = tasks.setdefault(name, TaskFiles())
        task.steps.add(row.get("env_steps") or 0)
        curves = task.curves
        for metric, value in row.items():
            if metric in METRICS and value is not None:
                curves[metric].add(frames, value)
    return times_s


def _boots_s(directory: Path) -> list[float]:
    """When sessions began, changed their load, or ended."""
    return [row["time"] for row in read_lines(directory / boot_journal.FILE_NAME) if "time" in row]


def _read_evaluations(directory: Path, tasks: dict[str, TaskFiles]) -> None:
    for path in sorted(directory.glob("*/evaluations.jsonl")):
        tasks.setdefault(path.parent.name, TaskFiles()).evaluations = list(read_lines(path))
    for name, task in tasks.items():
        videos = (directory / name / "videos").glob("*.gif")
        task.videos = sorted(videos, key=lambda path: path.stat().st_mtime)


def _differences(effective: str, path: Path) -> list[Mapping[str, Any]]:
    try:
        tree = yaml.safe_load(effective)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    rows = tree.get("differences") if isinstance(tree, dict) else None
    return [row for row in rows or [] if isinstance(row, dict)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
