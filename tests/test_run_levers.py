"""A person's levers on one live run: each takes effect, is written down, and outlives what dies.

What is wrong is refused with a reason, and then nothing at all has changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from live_run import EXPERIMENTS, ROOT, LiveRun, command, lines

from rl_cluster.config import RolloutConfig
from rl_cluster.exploration import epsilon_ladder
from rl_cluster.telemetry.incidents import read_incidents

SETTINGS = (
    "max_seconds=900",
    "telemetry.period_s=1",
    "load.tiers.small={games: 1, environments: 8, batch: 16}",
    "load.tiers.both={games: 2, environments: 16, batch: 32}",
    "defaults.rollout.exploration_env_steps=0",
    "defaults.learner.batch=32",
    "defaults.checkpoint.period_s=2",
    "defaults.evaluation.games=2",
    "defaults.evaluation.video=false",
)
LEVERS = (
    "learner.learning_rate=5e-5",
    "replay.samples_per_insert=4",
    "learner.batch=64",
    "rollout.epsilon_base=0.2",
)
WRONG: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (1, "learning_rate is -1", ("set", "learner.learning_rate=-1")),
    (1, "did you mean 'learner.batch'", ("set", "learner.bach=3")),
    (1, "cannot change while the run goes on", ("set", "rollout.actors=2")),
    (1, "publish_period is 0", ("set", "learner.learning_rate=1e-3", "learner.publish_period=0")),
    (2, "must read a.b=value", ("set", "faster")),
    (1, "no task 'Pong'", ("set", "--task", "Pong", "learner.learning_rate=1e-3")),
    (1, "custom, auto, light, medium, heavy, small, both", ("tier", "huge")),
    (1, "no task 'Pong'", ("pause", "Pong")),
    (1, "no task 'Pong'", ("resume", "Pong")),
    (1, "no task 'Pong'", ("remove", "Pong")),
    (1, "Catch is a task of this run already", ("add", "Catch")),
    (2, "did you mean 'batch'", ("add", "Second", "--set", "learner.bach=3")),
    (2, "Second", ("add", "Second")),  # no game of that name
)
SCRIPT = """
import contextlib, io, json, sys
from rl_cluster.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    answers.append((code, said.getvalue()))
print(json.dumps(answers))
"""


def levers(run: LiveRun, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Give commands from one process, as a notebook does; exit code and what was said of each."""
    arguments = [[name, str(run.run_dir), *rest] for name, *rest in commands]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    return [tuple(answer) for answer in json.loads(process.stdout.splitlines()[-1])]


def pull(run: LiveRun, *arguments: str) -> None:
    ((code, said),) = levers(run, arguments)
    assert code == 0, said


def newest(run: LiveRun, task: str, metric: str) -> Any:
    rows = [row for row in lines(run.run_dir / "metrics.jsonl") if row["task"] == task]
    return rows[-1].get(metric) if rows else None


def wait_for_metric(run: LiveRun, metric: str, value: float, task: str = "Catch") -> None:
    run.wait_for(lambda _: newest(run, task, metric) == pytest.approx(value, rel=1e-6), 60)


def wait_for_updates(run: LiveRun, more: int, *tasks: str) -> dict[str, Any]:
    """Wait until tasks, all of them where none is named, have learned on."""
    before = {t: s["learner_updates"] for t, s in run.summary()["tasks"].items()}
    return run.wait_for(
        lambda s: all(
            s["tasks"][t]["learner_updates"] > before[t] + more for t in tasks or s["tasks"]
        ),
        90,
    )


def effective(run: LiveRun, task: str = "Catch") -> Any:
    document = yaml.safe_load((run.run_dir / "effective.yaml").read_text(encoding="utf-8"))
    return document["config"]["tasks"][task]


def kinds(run: LiveRun) -> list[str]:
    return [incident.kind for incident in read_incidents(run.run_dir)]


def saved_counters(run: LiveRun) -> tuple[int, int]:
    """Updates, and transitions learned from, of the newest checkpoint."""
    checkpoints = run.run_dir / "Catch" / "checkpoints"
    latest = (checkpoints / "latest").read_text().strip()
    learner = json.loads((checkpoints / latest / "state.json").read_text())["learner"]
    return learner["updates"], learner["samples"]


def check_batch(run: LiveRun, batch: int) -> None:
    """Between two checkpoints, each update learned from so many transitions."""

    def later_than(updates: int) -> tuple[int, int]:
        run.wait_for(lambda _: saved_counters(run)[0] > updates, 60)
        return saved_counters(run)

    first = later_than(run.summary()["tasks"]["Catch"]["learner_updates"] + 20)
    second = later_than(first[0] + 5)
    assert (second[1] - first[1]) / (second[0] - first[0]) == batch


def settings_take_effect(run: LiveRun) -> None:
    pull(run, "set", *LEVERS)
    wait_for_metric(run, "learning_rate", 5e-5)
    summary = run.wait_for(lambda s: s["tasks"]["Catch"]["samples_per_insert"]["wanted"] == 4, 20)
    assert summary["tasks"]["Catch"]["restarts"] == 0, "nothing was started anew for it"
    ladder = epsilon_ladder(0.2, RolloutConfig().epsilon_alpha, 16)
    wait_for_metric(run, "epsilon_mean", float(np.mean(ladder)))
    check_batch(run, 64)
    assert effective(run)["learner"]["batch"] == 64
    (said,) = [i for i in read_incidents(run.run_dir) if i.kind == "setting_changed"]
    assert all(lever.partition("=")[0] in said.cause for lever in LEVERS)


def what_is_wrong_is_refused_and_nothing_changes(run: LiveRun) -> None:
    wishes, before = run.run_dir / "control" / "wishes.json", kinds(run)
    kept = wishes.read_text()
    for (code, part, arguments), (found, said) in zip(
        WRONG, levers(run, *(arguments for _, _, arguments in WRONG)), strict=True
    ):
        assert found == code and part in said, (arguments, found, said)
        assert "Traceback" not in said
    assert wishes.read_text() == kept and kinds(run) == before
    assert newest(run, "Catch", "learning_rate") == pytest.approx(5e-5)


def a_learner_that_was_killed_comes_back_with_them(run: LiveRun) -> None:
    before = run.summary()["tasks"]["Catch"]["restarts"]
    (learner,) = run.processes("LearnerActor")
    learner.kill()
    run.wait_for(lambda s: s["tasks"]["Catch"]["restarts"] > before, 60)
    wait_for_updates(run, 20)
    wait_for_metric(run, "learning_rate", 5e-5)
    check_batch(run, 64)


def a_game_comes_and_everything_rests_and_goes_on(run: LiveRun) -> None:
    pull(run, "add", "Second", "--set", "env.name=Catch", "learner.learning_rate=2e-3")
    run.wait_for(lambda s: s["tasks"].get("Second", {}).get("learner_updates", 0) > 20, 90)
    wait_for_metric(run, "learning_rate", 2e-3, "Second")
    assert newest(run, "Catch", "learning_rate") == pytest.approx(5e-5)
    pull(run, "pause")
    rests = run.wait_for(lambda s: {t["state"] for t in s["tasks"].values()} == {"paused"}, 30)
    pull(run, "resume")
    again = run.wait_for(lambda s: "paused" not in {t["state"] for t in s["tasks"].values()}, 30)
    for task in ("Catch", "Second"):
        grown = again["tasks"][task]["learner_updates"] - rests["tasks"][task]["learner_updates"]
        assert grown >= 0
    wait_for_updates(run, 20)


def a_tier_is_taken_live_and_given_back(run: LiveRun) -> None:
    updates = {t: s["learner_updates"] for t, s in run.summary()["tasks"].items()}
    pull(run, "tier", "small")
    run.wait_for(
        lambda s: (
            s["tier"] == {"requested": "small", "effective": "small"}
            and sorted(t["state"] == "queued" for t in s["tasks"].values()) == [False, True]
            and len(run.processes("LearnerActor")) == 1
        ),
        60,
    )
    assert effective(run)["rollout"]["environments"] == 8
    ((code, said),) = levers(run, ("set", "learner.batch=128"))
    assert code == 1 and "small" in said
    pull(run, "tier", "custom")
    run.wait_for(lambda s: s["tier"] == {"requested": "custom", "effective": "custom"}, 30)
    back = run.wait_for(
        lambda s: all(s["tasks"][t]["learner_updates"] > updates[t] + 20 for t in updates), 120
    )
    assert back["tasks"].keys() == {"Catch", "Second"}
    assert effective(run)["rollout"]["environments"] == 16
    assert effective(run)["learner"]["batch"] == 64, "what a person set is there again"


def a_game_leaves_and_its_files_stay(run: LiveRun) -> None:
    pull(run, "remove", "Second")
    run.wait_for(
        lambda s: s["tasks"].keys() == {"Catch"} and len(run.processes("LearnerActor")) == 1, 60
    )
    latest = (run.run_dir / "Second" / "checkpoints" / "latest").read_text().strip()
    assert int(latest.partition("-")[0]) > 20
    wait_for_updates(run, 20)


def rows_of(run: LiveRun, task: str) -> list[int]:
    """Environment steps of each of its rows of metrics."""
    rows = lines(run.run_dir / "metrics.jsonl")
    return [row["env_steps"] for row in rows if row["task"] == task]


def a_game_that_comes_again_goes_on_with_what_it_had(run: LiveRun) -> None:
    before = rows_of(run, "Second")
    pull(run, "add", "Second", "--set", "env.name=Catch")
    run.wait_for(lambda _: max(rows_of(run, "Second")) > max(before) + 200, 90)
    assert min(rows_of(run, "Second")[len(before) :]) > 0, "its curves begin where they were"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_levers_are_pulled_while_it_runs_and_stay_as_they_are(tmp_path: Path) -> None:
    config, run_dir = EXPERIMENTS / "catch.yaml", tmp_path / "run"
    with LiveRun(config, run_dir, *SETTINGS) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 20, 90)
        settings_take_effect(run)
        what_is_wrong_is_refused_and_nothing_changes(run)
        a_learner_that_was_killed_comes_back_with_them(run)
        a_game_comes_and_everything_rests_and_goes_on(run)
        assert command("stop", run_dir).returncode == 0
        assert run.finish(30) == 130, run.log()
        run.check_nothing_left()
        left = run.summary()["tasks"]
    with LiveRun(config, run_dir, *SETTINGS, resume=True) as run:
        run.wait_for(lambda s: s["state"] == "running" and s["tasks"].keys() == left.keys(), 60)
        wait_for_updates(run, 20)
        wait_for_metric(run, "learning_rate", 5e-5)
        wait_for_metric(run, "learning_rate", 2e-3, "Second")
        for task, summary in run.summary()["tasks"].items():
            assert summary["learner_updates"] > left[task]["learner_updates"]
        assert run.summary()["tasks"]["Catch"]["samples_per_insert"]["wanted"] == 4
        a_tier_is_taken_live_and_given_back(run)
        a_game_leaves_and_its_files_stay(run)
        a_game_that_comes_again_goes_on_with_what_it_had(run)
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
        assert not [k for k in kinds(run) if k in ("task_parked", "not_saved", "worker_parked")]
        told = {"setting_changed", "task_added", "paused", "resumed", "tier_requested"}
        assert told | {"task_removed", "worker_failed", "load_changed"} <= set(kinds(run))
