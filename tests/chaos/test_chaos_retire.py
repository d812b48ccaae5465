"""A slice that ends while the disk is full: who leaves saves first, however long that takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from live_run import EXPERIMENTS
from small_disk import small_disk

from chaos.counts import only_in_full
from chaos.support import SETTINGS, ChaosRun
from chaos.test_chaos_files import DISK_KIB, FULL_DISK, await_pulses, kept_full

pytestmark = [pytest.mark.chaos, only_in_full("a second disk, and slices on it")]
SLICE_S = 8
SLICES = (
    "load.tier=one",
    "load.tiers.one={games: 1, environments: 16, batch: 64}",
    f"load.slice_s={SLICE_S}",
    "defaults.env.name=Catch",
    "defaults.evaluation.video=false",
    # No checkpoint of its period: whatever is learned since the last slice has to be saved here.
    "defaults.checkpoint.period_s=3600",
    "defaults.evaluation.period_s=3600",
)


@pytest.mark.timeout(600)
def test_whose_slice_ends_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text((EXPERIMENTS / "catch.yaml").read_text().replace("[Catch]", "[A, B]"))
    (tmp_path / "run").mkdir()
    with (
        small_disk(tmp_path / "run", DISK_KIB) as disk,
        ChaosRun(config, tmp_path / "run", *SETTINGS, *FULL_DISK, *SLICES) as run,
    ):
        task = run.until(lambda: _at_work(run), 120, "updates of a task")
        updates, start_s = run.updates(task), time.time()
        with kept_full(disk):
            await_pulses(run, 2 * SLICE_S)
        saved = run.until(lambda: run.incidents(start_s, "checkpoint_resumed"), 60, "a save")
        assert saved[0]["task"] == task
        other = "B" if task == "A" else "A"
        run.until(lambda: _tasks(run)[other]["state"] != "queued", 60, "the other's slice")
        learned = run.updates(task)
        assert learned > updates, "it went on while it could not leave"
        run.until(lambda: _tasks(run)[task]["state"] == "running", 120, "its next slice")
        assert run.updates(task) >= learned
        failed = [i for i in run.incidents(start_s, "checkpoint_failed") if i["task"] == task]
        assert failed and "No space left" in failed[0]["cause"]
        assert not run.incidents(kind="not_saved") and not run.incidents(kind="worker_failed")
        run.end_well()


def _tasks(run: ChaosRun) -> dict[str, Any]:
    tasks: dict[str, Any] = run.summary()["tasks"]
    return tasks


def _at_work(run: ChaosRun) -> str | None:
    """A task that has just begun to learn."""
    return next((name for name, task in _tasks(run).items() if task["learner_updates"] > 20), None)
