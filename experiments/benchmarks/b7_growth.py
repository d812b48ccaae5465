"""B7: what a run costs besides its work, as games and rollouts grow.

Real runs of `rl-cluster train` with work so light (`ours/growth.yaml`) that what remains is
overhead: watched at work, then with every game paused, per kind of process, in CPU time and in
memory (PSS: a page that k processes share counts 1/k in each). Every count is measured twice, on
the way up and on the way down, so that the errors of the fits hold what changes from run to run.

Invariant: a figure is of a run in which every worker was made and at work; a count that the machine
refuses, or that does not start, ends its series and is named with the reason.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import psutil
from plan import Plan
from results import Row, machine
from sides import HERE, ROOT, BenchmarkError, Tree, Watch, run_once, side_mark

from rl_cluster.telemetry.summary import read_summary

ROW = "B7 growth"
CONFIG = HERE / "ours" / "growth.yaml"
GOAL_GAMES = 8
GAMES = (1, 2, 4, 8, 16)
ROLLOUTS = (1, 8, 16, 32, 48, 64)
WINDOW_S = 20.0
"""Four rows of metrics and twenty looks of the supervisor."""
SETTLING_S = 10.0
START_TIMEOUT_S = 1_200.0
"""Each worker takes some 3 CPU seconds to start, most of it to import torch."""
STEERING_TIMEOUT_S = 120.0
LOOK_S = 1.0
NOTICEABLE = 0.05
"""Share of a cost, at the largest count, from which growth counts as faster than linear."""

_TITLES = {
    "SupervisorActor": "supervisor", "WeightsActor": "weights", "ReplayActor": "replay",
    "LearnerActor": "learner", "RolloutActor": "rollout", "EvaluatorActor": "evaluator",
    "IDLE": "spare worker",
}  # fmt: skip
SUPERVISION = ("supervisor", "driver", "raylet", "gcs", "agents")
"""Processes that take no part in learning. The raylet's share holds the object store's thread."""
State = Literal["working", "paused"]


@dataclass(frozen=True)
class Point:
    """One window of one run."""

    count: int
    """Games, or rollouts of one game."""
    state: State
    cores: Mapping[str, float]
    """Cores kept busy, by kind of process."""
    memory_bytes: Mapping[str, int]
    """PSS, by kind of process."""
    others_cores: float

    def cores_of(self, kinds: Collection[str]) -> float:
        """Cores that these kinds keep busy."""
        return sum(self.cores.get(kind, 0.0) for kind in kinds)


@dataclass(frozen=True)
class Growth:
    """How a cost grows with a count: a line, and how much of it a square would explain."""

    slope: float
    """Per game or rollout."""
    slope_error: float
    """Two standard errors."""
    intercept: float
    square_share: float
    """Share of the cost at the largest count that a fitted square term makes up."""
    square_error: float
    """Two standard errors."""

    @property
    def verdict(self) -> str:
        """Whether it grows faster than linear, in words."""
        faster = self.square_share - self.square_error > NOTICEABLE
        share = f"square term {self.square_share:.0%} ± {self.square_error:.0%} at the largest"
        return f"{'FASTER THAN LINEAR' if faster else 'not faster than linear'}: {share}"


@dataclass(frozen=True)
class Axis:
    """What is made more of."""

    unit: str
    counts: Sequence[int]
    overrides: Callable[[int], list[str]]


@dataclass(frozen=True)
class Measure:
    """One cost of a run."""

    name: str
    state: State
    unit: str
    value: Callable[[Point], float]


def _games(count: int) -> list[str]:
    return [f"tasks=[{', '.join(f'Game{i + 1}' for i in range(count))}]"]


def _rollouts(count: int) -> list[str]:
    return [f"defaults.rollout.actors={count}"]


AXES = (
    Axis("game", GAMES, _games),
    Axis("rollout", ROLLOUTS, _rollouts),
)
MEASURES = (
    Measure(
        "CPU of supervision at work",
        "working",
        "% of a core",
        lambda point: 100 * point.cores_of(SUPERVISION),
    ),
    Measure(
        "CPU of the supervisor at work",
        "working",
        "% of a core",
        lambda point: 100 * point.cores_of(["supervisor"]),
    ),
    Measure(
        "CPU of everything at work",
        "working",
        "% of a core",
        lambda point: 100 * point.cores_of(point.cores),
    ),
    Measure(
        "CPU of everything, paused",
        "paused",
        "% of a core",
        lambda point: 100 * point.cores_of(point.cores),
    ),
    Measure(
        "memory of everything",
        "working",
        "MB",
        lambda point: sum(point.memory_bytes.values()) / 1e6,
    ),
    Measure(
        "memory of the supervisor",
        "working",
        "MB",
        lambda point: point.memory_bytes["supervisor"] / 1e6,
    ),
)


class LiveRun:
    """A run of the light configuration, ended with the `with` block."""

    def __init__(self, directory: Path, overrides: Sequence[str]) -> None:
        self._run, self._log = directory, directory.with_suffix(".log")
        self._program = str(Path(sys.executable).parent / "rl-cluster")
        train = [self._program, "train", str(CONFIG), "--run", str(directory), "--set", *overrides]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                train, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": f"{CONFIG.parent}{os.pathsep}{ROOT}",
                     **side_mark()},
            )  # fmt: skip
        self.tree = Tree(self._process.pid)

    def __enter__(self) -> LiveRun:
        """Return the run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End its processes."""
        self.tree.end()
        self._process.wait()

    def wait_until_at_work(self, rollouts: int) -> None:
        """Wait until every game learns and every rollout was made and is being called."""
        self._wait(lambda: self._learning() and self._called() >= rollouts, START_TIMEOUT_S)

    def pause(self) -> None:
        """Let every game rest; return once the rollouts have filled their slack and stand still."""
        run_once([self._program, "pause", str(self._run)], STEERING_TIMEOUT_S)
        self._wait(self._paused, STEERING_TIMEOUT_S)
        steps, now = -1, self._env_steps()
        while steps != now:
            time.sleep(SETTLING_S)
            steps, now = now, self._env_steps()

    def observe(self, count: int, state: State) -> Point:
        """Watch every process for one window."""
        before, watch = _cpu_s(self.tree), Watch(self.tree)
        time.sleep(WINDOW_S)
        window = watch.window(0.0, WINDOW_S)
        cores: defaultdict[str, float] = defaultdict(float)
        memory: defaultdict[str, int] = defaultdict(int)
        for process, cpu_s in _cpu_s(self.tree).items():
            kind = self._kind(process)
            cores[kind] += (cpu_s - before.get(process, 0.0)) / WINDOW_S
            with suppress(psutil.Error):
                memory[kind] += process.memory_full_info().pss
        return Point(count, state, cores, memory, window.others_cores)

    def _wait(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            if self._process.poll() is not None:
                lines = self._log.read_text().strip().splitlines()
                raise BenchmarkError(lines[-1] if lines else "the run ended without a word")
            if time.monotonic() > deadline_s:
                raise BenchmarkError(f"not there after {timeout_s:.0f} s")
            time.sleep(LOOK_S)

    def _learning(self) -> bool:
        return self._states() <= {"running", "waiting"}

    def _paused(self) -> bool:
        return self._states() == {"paused"}

    def _states(self) -> set[str]:
        return {task["state"] for task in self._tasks()} or {"starting"}

    def _env_steps(self) -> int:
        return sum(task["env_steps"] for task in self._tasks())

    def _tasks(self) -> list[Any]:
        try:
            return list(read_summary(self._run)["tasks"].values())
        except FileNotFoundError:
            return []

    def _called(self) -> int:
        """Rollouts whose constructor is done: Ray shows in a process's title what it does."""
        titles = [_title(process) for process in self.tree.processes()]
        return sum("RolloutActor" in title and "__init__" not in title for title in titles)

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self._process.pid:
            return "driver"
        title = _title(process)
        if title.startswith("ray::"):
            return next((kind for part, kind in _TITLES.items() if part in title), "agents")
        if "gcs_server" in title:
            return "gcs"
        return "raylet" if "/raylet/raylet" in title.split(" ")[0] else "agents"


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _cpu_s(tree: Tree) -> dict[psutil.Process, float]:
    spent = {}
    for process in tree.processes():
        with suppress(psutil.Error):
            times = process.cpu_times()
            spent[process] = times.user + times.system
    return spent


def watch_axis(plan: Plan, axis: Axis) -> tuple[list[Point], str]:
    """Measure every count twice; return the points and what was left out, if anything was.

    Raises:
      BenchmarkError: no run could be watched.
    """
    points: list[Point] = []
    refused: dict[int, str] = {}
    for pass_, counts in enumerate((sorted(axis.counts), sorted(axis.counts, reverse=True))):
        for count in counts:
            if count >= min(refused, default=count + 1):
                continue
            print(f"B7: {count} {axis.unit}s", flush=True)
            try:
                points += _watch(plan.scratch / f"{axis.unit}s-{count}-{pass_}", axis, count)
            except BenchmarkError as error:
                refused[count] = str(error)
    left_out = "; ".join(
        f"stopped at {count} {axis.unit}s: {why}" for count, why in refused.items()
    )
    if not points:
        raise BenchmarkError(left_out)
    return points, left_out


def _watch(directory: Path, axis: Axis, count: int) -> list[Point]:
    with LiveRun(directory, axis.overrides(count)) as run:
        run.wait_until_at_work(count)  # a game has one rollout, or the only game has them all
        time.sleep(SETTLING_S)
        working = run.observe(count, "working")
        run.pause()
        return [working, run.observe(count, "paused")]


def fit(counts: Sequence[int], values: Sequence[float]) -> Growth:
    """Fit a line, and beside it a line with a square, by least squares.

    Args:
      counts: (k,) at least three different ones, k > 3.
      values: (k,) the cost at each.
    """
    line, line_errors = _least_squares(counts, values, degree=1)
    square, square_errors = _least_squares(counts, values, degree=2)
    largest = max(counts)
    at_largest = float(square @ [1, largest, largest**2]) / largest**2
    return Growth(
        slope=float(line[1]),
        slope_error=2 * float(line_errors[1]),
        intercept=float(line[0]),
        square_share=float(square[2]) / at_largest,
        square_error=2 * float(square_errors[2]) / abs(at_largest),
    )


def _least_squares(
    counts: Sequence[int], values: Sequence[float], degree: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (degree + 1,), constant first, and their standard errors."""
    design = np.vander(np.array(counts, float), degree + 1, increasing=True)
    coefficients = np.linalg.lstsq(design, np.array(values), rcond=None)[0]
    residuals = values - design @ coefficients
    variance = residuals @ residuals / (len(values) - degree - 1)
    return coefficients, np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))


def growth_row(axis: Axis, measure: Measure, points: Sequence[Point], left_out: str) -> Row:
    """The row of one cost: its growth per game or rollout."""
    chosen = [point for point in points if point.state == measure.state]
    counts, values = [p.count for p in chosen], [measure.value(p) for p in chosen]
    unit = f"{measure.unit} per {axis.unit}"
    setting = f"1 to {max(counts)} {axis.unit}s: {measure.name}"
    if len(set(counts)) < 3:
        why = left_out or "fewer than three counts were measured"
        return Row(ROW, setting, unit, None, "", note=why)
    growth = fit(counts, values)
    formula = f"{growth.intercept:.3g} + n × ({growth.slope:.3g} ± {growth.slope_error:.2g})"
    note = "; ".join(filter(None, [formula, growth.verdict, left_out]))
    return Row(ROW, setting, unit, growth.slope, "", note=note, raw=_raw(chosen, values))


def goal_row(points: Sequence[Point]) -> Row:
    """The row of the goal: supervision's share of the machine's CPU at eight games."""
    games = max(p.count for p in points if p.count <= GOAL_GAMES)
    chosen = [p for p in points if p.count == games and p.state == "working"]
    cores = machine()["cores"]
    values = [100 * p.cores_of(SUPERVISION) / cores for p in chosen]
    parts = ", ".join(
        f"{kind} {100 * statistics.median(p.cores.get(kind, 0.0) for p in chosen) / cores:.2f}"
        for kind in SUPERVISION
    )
    note = f"goal: below 5 at {GOAL_GAMES} games; {parts}"
    raw = _raw(points, [p.cores_of(p.cores) for p in points])
    setting = f"{games} games at work: supervision"
    return Row(ROW, setting, "% of the CPU", statistics.median(values), "", note=note, raw=raw)


def _raw(points: Sequence[Point], values: Sequence[float]) -> dict[str, Any]:
    return {"us": [{**vars(p), "value": v} for p, v in zip(points, values, strict=True)]}


def measure(plan: Plan, axes: Sequence[Axis] = AXES) -> list[Row]:
    """Watch runs of every size and fit how their costs grow."""
    rows = []
    for axis in axes:
        points, left_out = watch_axis(plan, axis)
        if axis.unit == "game":
            rows.append(goal_row(points))
        rows += [growth_row(axis, cost, points, left_out) for cost in MEASURES]
    return rows
