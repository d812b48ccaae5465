"""NaN and Inf from environments and from a divergence: skipped, named, and nothing is spoiled.

A game that gives such values now and then is trained on; one that has diverged is parked.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from live_run import EXPERIMENTS

from chaos.counts import count, only_in_full
from chaos.figures import record_figure
from chaos.support import SETTINGS, ChaosRun
from rl_cluster.checkpoint import CheckpointStore

pytestmark = [pytest.mark.chaos, only_in_full("unit tests hold its parts")]
UPDATES = count(2_000, 150)
EVERY = 300  # batches of 8 rows
ROW = "NaN and Inf"


def spoiled(task: str, spoils: str, value: str) -> tuple[str, ...]:
    """Settings of a task whose environments give wrong numbers now and then."""
    settings = f"tasks.{task}.env.settings"
    return (
        f"tasks.{task}.env.entry=chaos.faulty_values:make",
        f"{settings}.entry=envs.classic:make",
        f"{settings}.spoils={spoils}",
        f"{settings}.value={value}",
        f"{settings}.every={EVERY}",
    )


@pytest.mark.timeout(900)
def test_values_that_are_not_finite_are_skipped_and_named_and_training_goes_on(
    tmp_path: Path,
) -> None:
    """Float observations, so that they can hold such; at a rate of 1e15 no update stays finite."""
    config = tmp_path / "wrong.yaml"
    tasks = "{Rewards: {}, Observations: {}, Divergence: {}}"
    text = (EXPERIMENTS / "cartpole.yaml").read_text()
    assert "tasks: [CartPole]" in text
    config.write_text(text.replace("tasks: [CartPole]", f"tasks: {tasks}"))
    settings = (
        *spoiled("Rewards", "rewards", ".nan"),
        *spoiled("Observations", "observations", ".inf"),
        "tasks.Divergence.learner.learning_rate=1.0e+15",
        "supervisor.max_fruitless_restarts=2",
        "defaults.replay.capacity_transitions=20000",
    )
    with ChaosRun(config, tmp_path / "run", *SETTINGS, *settings) as run:
        for task in ("Rewards", "Observations", "Divergence"):
            run.until(lambda task=task: _skipped(run, task), 300, f"skipped batches of {task}")  # type: ignore[misc]
        for task in ("Rewards", "Observations"):
            before = run.updates(task)
            run.until(
                lambda task=task, before=before: run.updates(task) > before + UPDATES,  # type: ignore[misc]
                240,
                f"updates of {task}",
            )
        run.until(lambda: _state(run, "Divergence") == "failed", 240, "a parked task")
        skipped = run.incidents(kind="batch_skipped")
        assert {i["task"] for i in skipped} == {"Rewards", "Observations", "Divergence"}
        assert all("rollout:" in i["cause"] for i in skipped), "the sources are named"
        run.end_well()
        _check_tasks(run)
    _check_resumable(run.run_dir)


def _check_tasks(run: ChaosRun) -> None:
    tasks = run.summary()["tasks"]
    assert "training has diverged" in tasks.pop("Divergence")["failure"]
    for task, figures in tasks.items():
        assert figures["state"] != "failed" and figures["restarts"] == 0, figures
        taken, left_out = figures["learner_updates"], figures["skipped_batches"]
        record_figure(ROW, f"{task}: batches skipped", left_out / (taken + left_out), "share")
    assert {i["task"] for i in run.incidents(kind="worker_failed")} == {"Divergence"}


def _state(run: ChaosRun, task: str) -> str:
    return str(run.summary()["tasks"][task]["state"])


def _skipped(run: ChaosRun, task: str) -> bool:
    return bool(run.summary()["tasks"][task]["skipped_batches"] > 0)


def _check_resumable(run_dir: Path) -> None:
    """What was saved holds no value that JSON or a resume would refuse."""
    for task in ("Rewards", "Observations", "Divergence"):
        loaded = CheckpointStore(run_dir / task / "checkpoints", keep=1).load_latest()
        assert loaded is not None and not loaded.refused
