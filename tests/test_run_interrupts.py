"""Interrupted at any moment, everything is saved; resumed, nothing goes backwards."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from live_run import EXPERIMENTS, LiveRun, command, lines

from rl_cluster.control import Control

INTERRUPTS = int(os.environ.get("RL_CLUSTER_INTERRUPTS", "5"))
"""Random signals in a row; the bar is 20 (`RL_CLUSTER_INTERRUPTS=20`), which takes five minutes."""
SETTINGS = ("max_seconds=600", "defaults.checkpoint.period_s=3", "defaults.evaluation.period_s=4")
CATCH = EXPERIMENTS / "catch.yaml"


@pytest.mark.timeout(60 + 60 * INTERRUPTS)
def test_random_signals_with_resume_lose_nothing_saved(tmp_path: Path) -> None:
    rng = random.Random(3)
    run_dir = tmp_path / "run"
    saved: dict[str, Any] | None = None
    for i in range(INTERRUPTS):
        resume = (run_dir / "config.yaml").exists()
        with LiveRun(CATCH, run_dir, *SETTINGS, resume=resume) as run:
            if i == 0:
                run.wait_for(lambda s: s["tasks"]["Catch"]["evaluation"] is not None, 60)
            time.sleep(rng.uniform(0.5, 14))
            start_s = time.monotonic()
            code = run.interrupt(rng.choice((signal.SIGINT, signal.SIGTERM)))
            assert code == 130, run.log()
            assert time.monotonic() - start_s < 10, f"took {time.monotonic() - start_s:.1f} s"
            run.check_nothing_left()
            if (run_dir / "summary.json").exists():
                saved = _check_not_behind(saved, run)
    assert saved is not None and saved["learner"]["updates"] > 0


def _check_not_behind(saved: dict[str, Any] | None, run: LiveRun) -> dict[str, Any]:
    checkpoints = run.run_dir / "Catch" / "checkpoints"
    latest = (checkpoints / "latest").read_text().strip()
    state: dict[str, Any] = json.loads((checkpoints / latest / "state.json").read_text())
    if saved is not None:
        assert state["learner"]["updates"] >= saved["learner"]["updates"]
        assert state["learner"]["policy_version"] >= saved["learner"]["policy_version"]
        assert state["replay"]["env_steps"] >= saved["replay"]["env_steps"]
        assert state["replay"]["episodes"] >= saved["replay"]["episodes"]
        assert state["tracker_id"] == saved["tracker_id"]
        if saved["best"] is not None:
            assert state["best"]["mean_return"] >= saved["best"]["mean_return"]
    wall_s = [row["wall_s"] for row in lines(run.run_dir / "metrics.jsonl")]
    assert wall_s == sorted(wall_s)
    return state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_still_saves(tmp_path: Path, number: int) -> None:
    """As Ctrl-C in a terminal, `timeout` and job schedulers send it; some send it twice."""
    with LiveRun(CATCH, tmp_path / "run", *SETTINGS) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 50, 60)
        os.killpg(run.process.pid, signal.SIGHUP)
        time.sleep(1)
        assert run.process.poll() is None, "a closed terminal does not end a run"
        os.killpg(run.process.pid, number)
        time.sleep(0.5)
        os.killpg(run.process.pid, number)
        assert run.finish(60) == 130, run.log()
        run.check_nothing_left()
        summary = run.summary()
        assert summary["state"] == "interrupted"
        latest = (run.run_dir / "Catch" / "checkpoints" / "latest").read_text()
        assert int(latest.partition("-")[0]) == summary["tasks"]["Catch"]["learner_updates"]


@pytest.mark.parametrize("delay_s", [0.3, 1.5, 3.0, 4.5, 6.0])
def test_a_signal_while_starting_ends_it_cleanly(tmp_path: Path, delay_s: float) -> None:
    with LiveRun(CATCH, tmp_path / "run", *SETTINGS) as run:
        time.sleep(delay_s)
        start_s = time.monotonic()
        assert run.interrupt() == 130, run.log()
        assert time.monotonic() - start_s < 10
        run.check_nothing_left()


def test_a_run_is_driven_from_another_process(tmp_path: Path) -> None:
    with LiveRun(CATCH, tmp_path / "run", *SETTINGS) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 50, 60)
        second = command("train", CATCH, "--run", run.run_dir, "--resume")
        keeper = Control(run.run_dir).signed("keeper")
        assert keeper is not None
        assert second.returncode == 2 and str(keeper.pid) in second.stderr
        assert command("pause", run.run_dir, "Catch").returncode == 0
        paused = run.wait_for(lambda s: s["tasks"]["Catch"]["state"] == "paused", 20)
        time.sleep(3)
        still = run.summary()["tasks"]["Catch"]["learner_updates"]
        assert still <= paused["tasks"]["Catch"]["learner_updates"] + 1
        assert command("resume", run.run_dir).returncode == 0
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > still + 50, 20)
        wrong = command("pause", run.run_dir, "Pong")
        assert wrong.returncode == 1 and "Catch" in wrong.stderr
        assert command("stop", run.run_dir).returncode == 0
        assert run.finish(30) == 130
        run.check_nothing_left()
        gone = command("stop", run.run_dir)
        assert gone.returncode == 1 and "not running" in gone.stderr
