"""A sweep goes on where it was interrupted; its runs compare; a short run foretells a long one."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from compared_runs import write_run
from live_run import EXPERIMENTS, LiveRun, command, lines

from rl_cluster.control import Control
from rl_cluster.sweep_plan import plan_sweep

pytestmark = pytest.mark.long

CATCH = EXPERIMENTS / "catch.yaml"
BYTES_PER_TRANSITION = 7_955
"""Of Catch's replay."""
SETTINGS = (
    "max_env_steps=12000",
    "max_seconds=null",
    "telemetry.period_s=1",
    "defaults.evaluation.period_s=1",
    "defaults.evaluation.games=5",
    "defaults.evaluation.video=false",
)


@pytest.mark.timeout(400)
def test_an_interrupted_sweep_goes_on_and_its_runs_compare(tmp_path: Path) -> None:
    sweep = tmp_path / "lr"
    first, second = sweep / "lr-seed-4", sweep / "lr-seed-6"
    words = ["sweep", CATCH, "--seeds", 4, 6, "--sweep", sweep]
    with LiveRun(CATCH, first, *SETTINGS, instead=words) as run:
        before = run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 20, 200)
        busy = command(*words, "--set", *SETTINGS)
        assert busy.returncode == 2 and "another `rl-cluster sweep`" in busy.stderr
        assert run.interrupt(signal.SIGINT) == 130, run.log()
        run.check_nothing_left()
        assert run.summary()["state"] == "interrupted" and not second.exists()
    other = command(*words, "--set", *SETTINGS, "max_env_steps=12001")
    assert other.returncode == 2 and "max_env_steps is 12000, not 12001" in other.stderr

    again = command(*words, "--set", *SETTINGS)
    assert again.returncode == 0, again.stderr
    for run_dir in (first, second):
        summary = json.loads((run_dir / "summary.json").read_text())
        assert summary["state"] == "completed"
        assert summary["tasks"]["Catch"]["env_steps"] >= 12_000
        assert (run_dir / "report.html").exists()
    resumed = [row["learner_updates"] for row in lines(first / "metrics.jsonl") if row["task"]]
    assert resumed == sorted(resumed) and resumed[-1] > before["tasks"]["Catch"]["learner_updates"]

    done = command(*words, "--set", *SETTINGS)
    assert done.returncode == 0 and done.stdout.count("was completed before") == 2
    compared = command("compare", sweep, "--json", "--out", tmp_path / "page")
    assert compared.returncode == 0, compared.stderr
    (score,) = json.loads(compared.stdout)["scores"]
    assert (score["group"], score["runs"]) == ("lr", 2) and score["low"] is not None
    assert (tmp_path / "page" / "comparison.html").exists()
    assert command("report", first, "--hourly", 2).returncode == 0
    assert "at 2 an hour" in (first / "report.html").read_text()


@pytest.mark.timeout(400)
def test_a_run_whose_sweep_was_killed_is_watched_to_its_end(tmp_path: Path) -> None:
    sweep = tmp_path / "lr"
    run_dir = sweep / "lr-seed-4"
    words = ["sweep", CATCH, "--seeds", 4, "--sweep", sweep]
    with LiveRun(CATCH, run_dir, *SETTINGS, instead=words) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 20, 200)
        session = Control(run_dir).read("session")
        assert run.interrupt(signal.SIGKILL) == -signal.SIGKILL
        again = command(*words, "--set", *SETTINGS)
        assert again.returncode == 0, again.stderr
        assert "seed 4: completed" in again.stdout, "it still trained"
        assert Control(run_dir).read("session") == session is not None, "and in no second session"
        run.check_nothing_left()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["state"] == "completed"
    assert summary["tasks"]["Catch"]["env_steps"] >= 12_000


def test_a_seed_that_failed_or_a_task_of_it_is_reported_and_not_tried_again(
    tmp_path: Path,
) -> None:
    plan = plan_sweep(tmp_path / "lr", CATCH, SETTINGS, (4, 6, 8))
    plan.write()
    parked = {"Catch": "it died too often"}
    for seed, state, failures in (
        (4, "failed", {}),
        (6, "completed", {}),
        (8, "completed", parked),
    ):
        curves = {"Catch": [(0, 0.0)]}
        write_run(plan.run_dir(seed), plan.seeded(seed), curves, state, failures)
    words = ["sweep", CATCH, "--seeds", 4, 6, 8, "--sweep", plan.directory, "--set", *SETTINGS]
    done = command(*words)
    assert done.returncode == 1 and "2 of 3 runs failed" in done.stderr
    assert "seed 4: failed" in done.stdout and "seed 6: was completed before" in done.stdout
    first = plan.run_dir(4)
    once_more = f"rl-cluster train {first}/config.yaml --run {first} --resume"
    assert once_more in done.stdout.replace("\n", ""), "with the seed, and what --set said"
    assert "seed 8: failed: Catch: it died too often" in done.stdout


def test_a_forecast_is_measured_by_a_run_that_leaves_nothing(tmp_path: Path) -> None:
    place = Path(tempfile.gettempdir())
    before = set(place.glob("rl-cluster-forecast-*"))
    arguments = ["forecast", CATCH, "--seconds", 6, "--hourly", 2, "--env-frames", 200_000_000]
    done = command(*arguments, "--json", "--set", "defaults.evaluation.games=5")
    assert done.returncode == 0, done.stderr
    forecast = json.loads(done.stdout)
    (tier,) = forecast["tiers"]
    (game,) = tier["games"]
    assert game["measured"] and game["env_steps"] == 200_000_000
    assert tier["hours"] == pytest.approx(200_000_000 / game["env_steps_per_s"] / 3600)
    assert tier["cost"] == pytest.approx(2 * tier["hours"])
    assert set(place.glob("rl-cluster-forecast-*")) == before


def test_a_tier_that_was_measured_is_told_though_the_next_cannot_be() -> None:
    twice = 2 * shutil.disk_usage("/dev/shm").free // BYTES_PER_TRANSITION
    arguments = ["forecast", CATCH, "--seconds", 3, "--tiers", "light", "custom", "--json"]
    done = command(*arguments, "--set", f"defaults.replay.capacity_transitions={twice}")
    assert done.returncode == 1 and "lower replay.capacity_transitions" in done.stderr
    assert [tier["tier"] for tier in json.loads(done.stdout)["tiers"]] == ["light"]
