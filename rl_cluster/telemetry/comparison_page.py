"""A comparison to read or to send: one page with tables and curves, CSV files, JSON.

Invariant: the page refers to nothing outside itself, every file says the same figures, and text
that others wrote (names, settings) is escaped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rl_cluster.comparison import Comparison, LearningCurve, Score
from rl_cluster.disk import write_text_atomically
from rl_cluster.telemetry.charts import SERIES, Chart, Line, render_chart
from rl_cluster.telemetry.formatting import UNKNOWN, number, percent, score, short_count
from rl_cluster.telemetry.page import page, pair, section, table

PAGE_NAME = "comparison.html"
_METHOD = (
    "Scores are the newest evaluations of each run; intervals are of 95 %, by a bootstrap over "
    "runs that is stratified by task (2,000 resamples). IQM: the mean of the middle half of all "
    "runs and tasks. P(improvement): how likely a run of one group beats one of the other on a "
    "task drawn at random. Agarwal et al. 2021, “Deep Reinforcement Learning at the Edge of the "
    "Statistical Precipice”."
)


def write_comparison(comparison: Comparison, directory: Path) -> Path:
    """Write comparison.html and .json, scores.csv, runs.csv and curves.csv; return the page's path.

    Raises:
      OSError: the disk is full or gone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "scores.csv": _csv(comparison.rows()),
        "runs.csv": _csv(comparison.run_rows()),
        "curves.csv": _csv([row for curve in comparison.curves for row in _curve_rows(curve)]),
        "comparison.json": json.dumps(comparison.to_record(), allow_nan=False, indent=1) + "\n",
        PAGE_NAME: render_comparison(comparison),
    }
    for name, text in texts.items():
        write_text_atomically(directory / name, text)
    return directory / PAGE_NAME


def render_comparison(comparison: Comparison) -> str:
    """Return the page."""
    names = [group.name for group in comparison.groups]
    title = escape(" · ".join(names))
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    charts = "".join(render_chart(chart) for chart in _charts(comparison, names))
    return page(
        title,
        f"<header><h1>{title}</h1><p>{_METHOD}</p></header>"
        + section("groups", "Groups", _groups(comparison))
        + section("aggregates", "All tasks", _aggregates(comparison))
        + section("improvements", "Probability of improvement", _improvements(comparison))
        + section("scores", "Final evaluation", _scores(comparison.scores))
        + section("curves", "Curves", f'<div class="charts">{charts}</div>')
        + (section("notes", "To know", f"<ul>{notes}</ul>") if notes else ""),
    )


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Return the figures as tables for a terminal."""
    heads = ("task", "group", "runs", "mean return", "95 %", "random", "of human", "env steps")
    tables = [Table(*heads)]
    for row in comparison.scores:
        tables[0].add_row(
            row.task,
            Text(row.group),
            str(row.runs),
            score(row.mean_return),
            _interval(row.low, row.high),
            score(row.random_mean_return),
            percent(row.human_normalized),
            _steps(row),
        )
    if comparison.aggregates:
        tables.append(Table("group", "scale", "IQM", "95 %"))
        for mean in comparison.aggregates:
            interval = _interval(mean.low, mean.high)
            iqm = number(mean.interquartile_mean)
            tables[-1].add_row(Text(mean.group), mean.scale, iqm, interval)
    if comparison.improvements:
        tables.append(Table("group", "over", "P(improvement)", "95 %"))
        for chance in comparison.improvements:
            interval = _interval(chance.low, chance.high)
            groups = Text(chance.group), Text(chance.over)
            tables[-1].add_row(*groups, f"{chance.probability:.2f}", interval)
    return tables


def _groups(comparison: Comparison) -> str:
    rows = (
        (
            escape(group.name),
            escape(", ".join(str(run.seed) for run in group.runs)),
            "<br>".join(escape(str(run.directory)) for run in group.runs),
            "<br>".join(escape(f"{key}: {value}") for key, value in group.settings.items())
            or "nothing",
        )
        for group in comparison.groups
    )
    return table(("group", "seeds", "runs", "differs in"), rows)


def _aggregates(comparison: Comparison) -> str:
    if not comparison.aggregates:
        return '<p class="empty">no scale is common to all tasks: see below</p>'
    rows = (
        (
            escape(row.group),
            pair(number(row.interquartile_mean), row.scale),
            _interval(row.low, row.high),
        )
        for row in comparison.aggregates
    )
    return table(("group", "IQM", "95 %"), rows, numeric=True)


def _improvements(comparison: Comparison) -> str:
    if not comparison.improvements:
        return '<p class="empty">there is one group only</p>'
    rows = (
        (
            f"{escape(row.group)} &gt; {escape(row.over)}",
            f"{row.probability:.2f}",
            _interval(row.low, row.high),
        )
        for row in comparison.improvements
    )
    return table(("a run of", "P(improvement)", "95 %"), rows, numeric=True)


def _scores(scores: Sequence[Score]) -> str:
    rows = (
        (
            pair(row.task, row.group),
            str(row.runs),
            pair(score(row.mean_return), _interval(row.low, row.high)),
            score(row.random_mean_return),
            percent(row.human_normalized),
            _steps(row),
        )
        for row in sorted(scores, key=lambda row: row.task)
    )
    heads = ("task", "runs", "mean return, 95 %", "random", "of human", "env steps")
    return table(heads, rows, numeric=True)


def _steps(row: Score) -> str:
    least, most = short_count(row.env_steps_least), short_count(row.env_steps_most)
    return least if least == most else f"{least} to {most}"


def _interval(low: float | None, high: float | None) -> str:
    return UNKNOWN if low is None or high is None else f"{number(low)} to {number(high)}"


def _charts(comparison: Comparison, names: Sequence[str]) -> list[Chart]:
    explanation = "Mean return over the group's runs, and its interval of 95 %."
    tasks = dict.fromkeys(curve.task for curve in comparison.curves)
    return [
        Chart(
            task,
            explanation,
            "env steps",
            [
                _line(curve, names.index(curve.group))
                for curve in comparison.curves
                if curve.task == task
            ],
            short_count,
        )
        for task in tasks
    ]


def _line(curve: LearningCurve, group: int) -> Line:
    band = (
        ()
        if curve.low is None or curve.high is None
        else tuple(zip(curve.env_steps, curve.low, curve.high, strict=True))
    )
    points = list(zip(curve.env_steps, curve.mean_return, strict=True))
    # Colours come again from the seventh group on: its line is dashed.
    return Line(curve.group, points, group % SERIES, dashed=group // SERIES % 2 == 1, band=band)


def _curve_rows(curve: LearningCurve) -> list[dict[str, Any]]:
    unknown = [None] * len(curve.env_steps)
    columns = (curve.env_steps, curve.mean_return, curve.low or unknown, curve.high or unknown)
    names = ("env_steps", "mean_return", "low", "high")
    return [
        {"group": curve.group, "task": curve.task, **dict(zip(names, row, strict=True))}
        for row in zip(*columns, strict=True)
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a head; empty where nothing is known of anything."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
