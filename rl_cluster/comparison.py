"""Groups of runs beside each other: final scores with intervals, aggregates, improvement, curves.

Invariant: every figure is of the runs' own evaluations, a run counts once however many games it
played, and an interval that cannot be known (of a single run) is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rl_cluster.comparison_notes import notes_on
from rl_cluster.comparison_runs import Group, read_groups
from rl_cluster.evaluation import Evaluation
from rl_cluster.statistics import (
    Interval,
    Strata,
    bootstrap_band,
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
)
from rl_cluster.telemetry.charts import Curve
from rl_cluster.telemetry.jsonl import strict

_POINTS = 40
_FRAME_HEIGHT_PX = 620


@dataclass(frozen=True)
class Score:
    """The newest evaluations of one group's runs on one task; intervals are of 95 %, over runs."""

    group: str
    task: str
    runs: int
    env_steps_least: int
    """Steps trained at the newest evaluation, of the run that has the fewest."""
    env_steps_most: int
    mean_return: float
    low: float | None
    """None: of one run."""
    high: float | None
    random_mean_return: float
    human_normalized: float | None
    """Mean over runs: 0 is random, 1 is human; None for games outside the published table."""


@dataclass(frozen=True)
class Aggregate:
    """The interquartile mean of a group over all runs and tasks."""

    group: str
    scale: str
    """`human-normalized`; or `return`, where the one task has no published scores."""
    interquartile_mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Improvement:
    """How likely a run of one group beats a run of another, on a task drawn at random."""

    group: str
    over: str
    probability: float
    low: float | None
    """None: either group is one run."""
    high: float | None


@dataclass(frozen=True)
class LearningCurve:
    """The mean return of a group's runs on one task, where all of them were evaluated."""

    group: str
    task: str
    env_steps: Sequence[float]
    mean_return: Sequence[float]
    low: Sequence[float] | None
    """None: of one run."""
    high: Sequence[float] | None


@dataclass(frozen=True)
class Comparison:
    """What is known of some groups of runs; a notebook shows it as a page."""

    groups: Sequence[Group]
    scores: Sequence[Score]
    aggregates: Sequence[Aggregate]
    """Empty where no scale is common to all tasks; `notes` then says so."""
    improvements: Sequence[Improvement]
    """Of every two groups."""
    curves: Sequence[LearningCurve]
    notes: Sequence[str]
    """What to know before one trusts the figures."""

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each group and task: `pandas.DataFrame(comparison.rows())`."""
        return [asdict(score) for score in self.scores]

    def run_rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each run and task: what the figures are made of."""
        return [
            {
                "group": group.name,
                "run": str(run.directory),
                "seed": run.seed,
                "state": run.state,
                "task": task,
                "env_steps": found[-1].env_steps,
                "episodes": found[-1].episodes,
                "mean_return": found[-1].mean_return,
                "std_return": found[-1].std_return,
                "random_mean_return": found[-1].random_mean_return,
                "human_normalized": found[-1].human_normalized,
            }
            for group in self.groups
            for run in group.runs
            for task, found in run.evaluations.items()
        ]

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        record = {
            "groups": [group.to_record() for group in self.groups],
            "runs": self.run_rows(),
            "scores": self.rows(),
            "aggregates": [asdict(aggregate) for aggregate in self.aggregates],
            "improvements": [asdict(improvement) for improvement in self.improvements],
            "curves": [asdict(curve) for curve in self.curves],
            "notes": list(self.notes),
        }
        return dict(strict(record))

    def _repr_html_(self) -> str:
        # In a frame of its own: the page's style must not become the notebook's.
        from rl_cluster.telemetry.comparison_page import render_comparison

        text = escape(render_comparison(self))
        style = f"width: 100%; height: {_FRAME_HEIGHT_PX}px; border: 0"
        return f'<iframe srcdoc="{text}" style="{style}"></iframe>'


def compare(paths: Iterable[str | Path]) -> Comparison:
    """Compare runs and sweeps.

    Args:
      paths: run directories, and sweeps, which stand for all of their runs. Runs of one sweep are a
        group, and so are others whose configurations differ in nothing but their seed.

    Raises:
      ComparisonError: a path is neither, a run has no evaluation, tasks differ, or a file of theirs
        is damaged.
    """
    groups = read_groups(Path(path) for path in paths)
    tasks = list(groups[0].runs[0].evaluations)
    scale = _scale(groups)
    return Comparison(
        groups,
        [_score(group, task) for group in groups for task in tasks],
        [_aggregate(group, tasks, scale) for group in groups] if scale else [],
        [_improvement(*two, tasks) for two in combinations(groups, 2)],
        [_curve(group, task) for group in groups for task in tasks],
        notes_on(groups, scale),
    )


def _newest(group: Group, task: str) -> list[Evaluation]:
    return [run.evaluations[task][-1] for run in group.runs]


def _returns(group: Group, tasks: Iterable[str]) -> list[np.ndarray]:
    """Of each task, (runs,) mean returns."""
    return [np.array([e.mean_return for e in _newest(group, task)]) for task in tasks]


def _score(group: Group, task: str) -> Score:
    newest = _newest(group, task)
    returns = _returns(group, [task])
    human = [e.human_normalized for e in newest if e.human_normalized is not None]
    low, high = _ends(bootstrap_interval(returns, lambda strata: float(strata[0].mean())))
    return Score(
        group.name,
        task,
        len(newest),
        min(e.env_steps for e in newest),
        max(e.env_steps for e in newest),
        float(returns[0].mean()),
        low,
        high,
        float(np.mean([e.random_mean_return for e in newest])),
        float(np.mean(human)) if human else None,
    )


def _scale(groups: Sequence[Group]) -> str | None:
    """On which scale scores of all tasks can be put together; None: on none."""
    runs = [run for group in groups for run in group.runs]
    newest = [found[-1] for run in runs for found in run.evaluations.values()]
    if all(evaluation.human_normalized is not None for evaluation in newest):
        return "human-normalized"
    return "return" if len(runs[0].evaluations) == 1 else None


def _aggregate(group: Group, tasks: Sequence[str], scale: str) -> Aggregate:
    scores = _returns(group, tasks)
    if scale == "human-normalized":
        scores = [
            np.array([e.human_normalized for e in _newest(group, task)], float) for task in tasks
        ]
    return Aggregate(
        group.name,
        scale,
        interquartile_mean(scores),
        *_ends(bootstrap_interval(scores, interquartile_mean)),
    )


def _improvement(group: Group, over: Group, tasks: Sequence[str]) -> Improvement:
    better, worse = _returns(group, tasks), _returns(over, tasks)
    # Any order-preserving scale gives the same probability: returns do for every task.
    interval = bootstrap_interval([*better, *worse], _halves_compared(len(tasks)))
    probability = probability_of_improvement(better, worse)
    return Improvement(group.name, over.name, probability, *_ends(interval))


def _halves_compared(tasks: int) -> Callable[[Strata], float]:
    return lambda strata: probability_of_improvement(strata[:tasks], strata[tasks:])


def _curve(group: Group, task: str) -> LearningCurve:
    """Runs are evaluated at different steps: each is interpolated to common ones."""
    runs = [_points(run.evaluations[task]) for run in group.runs]
    first = max(steps[0] for steps, _ in runs)
    last = min(steps[-1] for steps, _ in runs)
    if first > last:
        return LearningCurve(group.name, task, (), (), None, None)
    places = np.linspace(first, last, _POINTS if last > first else 1)
    curves = np.stack([np.interp(places, steps, returns) for steps, returns in runs])
    band = bootstrap_band(curves)
    return LearningCurve(
        group.name,
        task,
        places.tolist(),
        curves.mean(axis=0).tolist(),
        None if band is None else band[0].tolist(),
        None if band is None else band[1].tolist(),
    )


def _points(evaluations: Sequence[Evaluation]) -> tuple[np.ndarray, np.ndarray]:
    """(k,) env_steps, rising, and mean returns: of a run that resumed, what survived."""
    curve = Curve()
    for evaluation in evaluations:
        curve.add(evaluation.env_steps, evaluation.mean_return)
    steps, returns = np.array(curve.points, float).T
    return steps, returns


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)
