"""Comparison of groups of runs: figures that can be checked by hand, and refusals."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from compared_runs import configured, write_group, write_run
from live_run import command
from rich.console import Console

import rl_cluster
from rl_cluster.comparison import compare
from rl_cluster.comparison_runs import ComparisonError
from rl_cluster.config_file import dump
from rl_cluster.scores import human_normalized
from rl_cluster.sweep_plan import SweepPlan
from rl_cluster.telemetry.comparison_page import terminal_tables, write_comparison
from rl_cluster.telemetry.incidents import Incident, IncidentLog

FAST, SLOW = (10.0, 12.0, 14.0, 20.0), (9.0, 11.0, 13.0)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [*write_group(tmp_path, 1e-3, FAST), *write_group(tmp_path, 1e-4, SLOW)]


def test_runs_that_differ_in_nothing_but_their_seed_are_a_group(runs: list[Path]) -> None:
    compared = rl_cluster.compare(reversed(runs))
    assert [(group.name, len(group.runs)) for group in compared.groups] == [
        ("0.0001-2", 3),
        ("0.001-3", 4),
    ]
    assert [dict(group.settings) for group in compared.groups] == [
        {"tasks.Pong.learner.learning_rate": 1e-4},
        {"tasks.Pong.learner.learning_rate": 1e-3},
    ]


def test_the_figures_are_those_of_the_newest_evaluations(runs: list[Path]) -> None:
    compared = compare(runs)
    first, second = compared.scores
    assert (first.mean_return, second.mean_return) == (14.0, 11.0)
    assert (first.runs, first.env_steps_least, first.env_steps_most) == (4, 1000, 1000)
    assert first.low is not None and first.high is not None
    assert 10.0 <= first.low < 14.0 < first.high <= 20.0
    expected = human_normalized("Pong", 13.0)  # the middle two of four
    assert compared.aggregates[0].scale == "human-normalized"
    assert compared.aggregates[0].interquartile_mean == pytest.approx(expected)
    (improvement,) = compared.improvements
    wins = sum(fast > slow for fast in FAST for slow in SLOW)
    assert improvement.probability == pytest.approx(wins / 12)
    assert improvement.low is not None and improvement.low < wins / 12
    assert [row["mean_return"] for row in compared.run_rows()] == [*FAST, *SLOW]


def test_a_curve_is_the_mean_of_runs_that_were_evaluated_at_different_steps(
    runs: list[Path],
) -> None:
    curve = compare(runs).curves[0]
    assert (curve.env_steps[0], curve.env_steps[-1]) == (0, 1000)
    assert (curve.mean_return[0], curve.mean_return[-1]) == (-20.0, 14.0)
    assert curve.low is not None and curve.high is not None
    assert (np.array(curve.low) <= curve.mean_return).all()
    assert (np.array(curve.high) >= curve.mean_return).all()
    assert curve.low[0] == curve.high[0] == -20.0, "where all runs agree there is no doubt"
    assert curve.low[-1] < curve.high[-1]


def test_one_run_has_no_interval_and_that_is_said(tmp_path: Path) -> None:
    compared = compare(write_group(tmp_path, 1e-3, [15.0]))
    (score,), (curve,), (aggregate,) = compared.scores, compared.curves, compared.aggregates
    assert score.low is score.high is curve.low is curve.high is aggregate.low is None
    assert compared.improvements == []
    assert any("no interval" in note for note in compared.notes)


@pytest.mark.parametrize("one_first", [True, False])
def test_one_run_against_several_has_no_interval(tmp_path: Path, one_first: bool) -> None:
    one, several = write_group(tmp_path, 1e-3, [15.0]), write_group(tmp_path, 1e-4, SLOW)
    compared = compare([*one, *several] if one_first else [*several, *one])
    (improvement,) = compared.improvements
    assert improvement.probability == (1.0 if one_first else 0.0)
    assert improvement.low is improvement.high is None


def written_sweep(directory: Path, *seeds: int, begun: int) -> SweepPlan:
    """A sweep of Pong, whose first seeds have begun."""
    plan = SweepPlan(directory, directory.name, configured("Pong", seed=0), seeds)
    plan.write()
    for seed in seeds[:begun]:
        curves = {"Pong": [(0, -20.0), (1000, float(seed))]}
        write_run(plan.run_dir(seed), plan.seeded(seed), curves)
    return plan


def test_a_seed_whose_turn_has_not_come_is_said_and_the_others_compare(tmp_path: Path) -> None:
    written_sweep(tmp_path / "lr", 4, 6, 8, begun=2)
    compared = compare([tmp_path / "lr"])
    assert [run.seed for run in compared.groups[0].runs] == [4, 6]
    assert "lr-seed-8 has not begun yet: lr is without it" in compared.notes
    whole = compare([written_sweep(tmp_path / "whole", 4, 6, begun=2).directory])
    assert whole.notes == []


def test_settings_that_differ_within_a_sweep_are_said(tmp_path: Path) -> None:
    """A run of it was trained on by hand, with other settings."""
    plan = written_sweep(tmp_path / "lr", 4, 6, begun=2)
    other = configured("Pong", seed=6, learning_rate=1e-5)
    (plan.run_dir(6) / "config.yaml").write_text(dump(other))
    notes = compare([plan.directory]).notes
    assert notes == ["runs of lr differ in tasks.Pong.learner.learning_rate"]


def test_a_task_that_failed_in_a_completed_run_is_said(tmp_path: Path) -> None:
    points = {"Pong": [(0, -20.0), (700, 3.0)], "Breakout": [(0, 0.0), (700, 3.0)]}
    config = configured("Pong", "Breakout")
    run = write_run(tmp_path / "run", config, points, failures={"Pong": "it died too often"})
    notes = compare([run]).notes
    assert "run/Pong is failed: its newest evaluation, at 700 env steps, counts" in notes
    assert not any("Breakout" in note for note in notes)


def test_what_people_or_the_load_changed_in_a_run_is_said(tmp_path: Path) -> None:
    changed, other = write_group(tmp_path, 1e-3, FAST[:2])
    for run, kinds in (
        (changed, ["setting_changed", "load_changed", "setting_changed", "worker_failed"]),
        (other, ["worker_failed", "paused"]),
    ):
        log = IncidentLog(run)
        for kind in kinds:
            log.append(Incident(1.8e9, None, None, kind, "a person asked for it", "done"))
        log.close()
    assert compare([changed, other]).notes == [
        "0.001-0 was changed while it trained (setting_changed, load_changed): "
        "its incidents say how"
    ]


def test_runs_of_different_length_are_said_and_shown(tmp_path: Path) -> None:
    config = configured("Pong")
    long = write_run(tmp_path / "long", config, {"Pong": [(0, -20.0), (1000, 5.0)]})
    short = write_run(tmp_path / "short", config, {"Pong": [(0, -20.0), (500, 5.0)]})
    alike = write_run(tmp_path / "alike", config, {"Pong": [(0, -20.0), (950, 5.0)]})
    said = "the newest evaluations of Pong are after 500 to 1 k env steps"
    assert any(said in note for note in compare([long, short]).notes)
    assert not any("env steps" in note for note in compare([long, alike]).notes)
    text = io.StringIO()
    Console(file=text, width=100).print(terminal_tables(compare([long, short]))[0])
    assert "env steps" in text.getvalue() and "500 to 1 k" in text.getvalue()


def test_a_sweep_stands_for_its_runs_and_is_a_group_of_its_own(tmp_path: Path) -> None:
    """Two sweeps of the same configuration, such as before and after a change of the code."""
    for name in ("before", "after"):
        written_sweep(tmp_path / name, 4, 6, begun=2)
    compared = compare([tmp_path / "before", tmp_path / "after"])
    assert [group.name for group in compared.groups] == ["before", "after"]
    assert [run.seed for run in compared.groups[0].runs] == [4, 6]
    assert compared.improvements[0].probability == 0.5


def test_a_task_without_published_scores_has_an_aggregate_of_returns_if_it_is_alone(
    tmp_path: Path,
) -> None:
    alone = compare(write_group(tmp_path / "alone", 1e-3, [0.5, 0.7, 0.9], "Catch"))
    assert alone.aggregates[0].scale == "return"
    assert alone.aggregates[0].interquartile_mean == pytest.approx(0.7)
    points = {"Catch": [(0, 0.0)], "Pong": [(0, 0.0)]}
    two = compare([write_run(tmp_path / "two", configured("Catch", "Pong"), points)])
    assert two.aggregates == [] and any("no aggregate" in note for note in two.notes)


def test_a_run_that_resumed_counts_with_what_survived(tmp_path: Path) -> None:
    points = {"Pong": [(0, -20.0), (800, 5.0), (500, -5.0), (900, 8.0)]}
    curve = compare([write_run(tmp_path / "run", configured("Pong"), points)]).curves[0]
    assert np.interp(800, curve.env_steps, curve.mean_return) == pytest.approx(4.75, abs=0.1)


def test_what_is_not_over_yet_is_said(tmp_path: Path) -> None:
    points = {"Pong": [(0, -20.0)]}
    run = write_run(tmp_path / "run", configured("Pong"), points, state="running")
    assert any("run is running, not completed" in note for note in compare([run]).notes)


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "no_run",
        "no_evaluation",
        "other_tasks",
        "damaged",
        "damaged_sweep",
        "no_seed_has_begun",
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    pong = write_run(tmp_path / "pong", configured("Pong"), {"Pong": [(0, -20.0)]})
    catch = write_run(tmp_path / "catch", configured("Catch"), {"Catch": [(0, 0.0)]})
    silent = write_run(tmp_path / "silent", configured("Pong"), {})
    damaged = write_run(tmp_path / "damaged", configured("Pong"), {"Pong": [(0, -20.0)]})
    (damaged / "Pong" / "evaluations.jsonl").write_text("{}\n")
    no_sweep = written_sweep(tmp_path / "no_sweep", 4, begun=1).directory
    (no_sweep / "sweep.yaml").write_text("seeds: [")
    waits = written_sweep(tmp_path / "waits", 4, 6, begun=0).directory
    paths, reason = {
        "nothing": ([], "no run to compare"),
        "no_run": ([tmp_path / "nowhere"], "is no run"),
        "no_evaluation": ([pong, silent], "silent has no evaluation of Pong yet"),
        "other_tasks": ([pong, catch], "different tasks"),
        "damaged": ([damaged], "damaged cannot be read"),
        "damaged_sweep": ([pong, no_sweep], r"sweep\.yaml is not YAML.*name its runs one by one"),
        "no_seed_has_begun": ([pong, waits], "no run of the sweep .*/waits has begun yet"),
    }[what]
    with pytest.raises(ComparisonError, match=f"(?s){reason}"):
        compare(paths)


def test_files_page_and_terminal_say_the_same(runs: list[Path], tmp_path: Path) -> None:
    done = command("compare", *runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "14.0" in done.stdout and "P(improvement)" in done.stdout
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    printed = command("compare", *runs, "--json")
    assert json.loads(printed.stdout) == record
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [float(row["mean_return"]) for row in csv.DictReader(file)] == [14.0, 11.0]
    with (tmp_path / "out" / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    with (tmp_path / "out" / "curves.csv").open() as file:
        assert {row["group"] for row in csv.DictReader(file)} == {"0.001-0", "0.0001-0"}
    refused = command("compare", tmp_path)
    assert refused.returncode == 1 and "is no run" in refused.stderr


def test_the_page_refers_to_nothing_outside_itself_and_escapes_names(tmp_path: Path) -> None:
    odd = write_group(tmp_path / "x", 1e-3, FAST)
    odd[0] = odd[0].rename(tmp_path / "<b>[i]odd")
    other = write_group(tmp_path / "y", 1e-4, SLOW)
    html = write_comparison(compare([*odd, *other]), tmp_path / "out").read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<b>", html)
    assert html.count('class="band series-0"') == html.count('class="band series-1"') == 1
    text = io.StringIO()
    console = Console(file=text, width=120)
    for table in terminal_tables(compare([*odd, *other])):
        console.print(table)
    assert text.getvalue().count("<b>[i]odd") == 3
    shown = compare([*odd, *other])._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
