"""Signals, a second `train`, lost terminals and drivers: what is saved stays, the rest goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_run import ROOT, command, lines

from chaos.counts import only_in_full
from chaos.figures import record_figure, record_spread
from chaos.support import CATCH, PERIOD_S, SETTINGS, ChaosRun, chaos_run
from rl_cluster.control import Control
from rl_cluster.run_directory import is_in_use

pytestmark = pytest.mark.chaos
INTERRUPTS = 100
ROW = "SIGINT and SIGTERM with resume"


@only_in_full("a session for each; test_run_interrupts has some")
@pytest.mark.timeout(60 + 60 * INTERRUPTS)
def test_random_signals_with_resume_lose_nothing_saved(tmp_path: Path, rng: random.Random) -> None:
    """Some come while the run is starting, every third is doubled."""
    saved: dict[str, Any] | None = None
    took_s = []
    for i in range(INTERRUPTS):
        resume = (tmp_path / "run" / "config.yaml").exists()
        with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, resume=resume) as run:
            if i == 0:
                run.await_training()
            time.sleep(rng.uniform(0.5, 14))
            start_s = time.monotonic()
            _interrupt(run, rng, doubled=i % 3 == 2)
            took_s.append(time.monotonic() - start_s)
            run.check_nothing_left()
            if (tmp_path / "run" / "summary.json").exists():
                saved = check_not_behind(saved, run)
    assert saved is not None and saved["learner"]["updates"] > 0
    record_spread(ROW, "until everything was saved", took_s, "s")


def _interrupt(run: ChaosRun, rng: random.Random, doubled: bool) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    run.process.send_signal(rng.choice(numbers))
    if doubled:
        time.sleep(rng.uniform(0.0, 0.5))
        if run.process.poll() is None:
            run.process.send_signal(rng.choice(numbers))
    assert run.process.wait(timeout=60) == 130, run.story()


def check_not_behind(saved: dict[str, Any] | None, run: ChaosRun) -> dict[str, Any]:
    """No counter of the newest checkpoint is below what was saved before; return its state."""
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


@pytest.mark.timeout(400)
def test_a_run_outlives_its_terminal_and_its_driver_and_is_driven_by_commands(
    tmp_path: Path,
) -> None:
    with chaos_run(tmp_path) as run:
        os.killpg(run.process.pid, signal.SIGHUP)
        time.sleep(1.0)
        assert run.process.poll() is None, "a closed terminal ends no driver"
        run.process.kill()
        killed_s = time.time()
        run.process.wait()
        run.await_rise(("learner_updates", "env_steps"), killed_s)
        status = command("status", run.run_dir, "--json")
        assert status.returncode == 0 and json.loads(status.stdout)["state"] == "running"
        assert not run.incidents(killed_s), "nobody else noticed"
        _check_nobody_else_gets_in(run)
        _pause_and_resume(run)
        start_s = time.monotonic()
        run.end_well()
        record_figure("driver and terminal lost", "stopped in", time.monotonic() - start_s, "s")
        summary = run.summary()
        assert summary["state"] == "interrupted"
        latest = (run.run_dir / "Catch" / "checkpoints" / "latest").read_text()
        assert int(latest.partition("-")[0]) == summary["tasks"]["Catch"]["learner_updates"]
        again = command("stop", run.run_dir)
        assert again.returncode == 1 and "not running" in again.stderr


def _pause_and_resume(run: ChaosRun) -> None:
    assert command("pause", run.run_dir, "Catch").returncode == 0
    run.until(lambda: run.summary()["tasks"]["Catch"]["state"] == "paused", 20, "a pause")
    at_rest = run.updates()
    time.sleep(3)
    assert run.updates() <= at_rest + 1
    wrong = command("pause", run.run_dir, "Pong")
    assert wrong.returncode == 1 and "Catch" in wrong.stderr
    assert command("resume", run.run_dir).returncode == 0
    run.until(lambda: run.updates() > at_rest + 50, 20, "updates again")


def _check_nobody_else_gets_in(run: ChaosRun) -> None:
    keeper = Control(run.run_dir).signed("keeper")
    assert keeper is not None
    for second in (
        command("train", CATCH, "--run", run.run_dir, "--resume"),
        command("keep", run.run_dir),
    ):
        assert second.returncode == 2 and f"process {keeper.pid}" in second.stderr, second.stderr


@only_in_full("a run for each")
@pytest.mark.parametrize("round_", range(10))
def test_of_two_started_at_the_same_moment_one_trains_and_one_is_refused(
    tmp_path: Path, round_: int
) -> None:
    """Both detached: the command of the one that trains returns, and its run goes on."""
    with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, "--detach") as run:
        second = subprocess.run(
            [sys.executable, "-m", "rl_cluster.cli", "train", str(CATCH), "--run",
             str(run.run_dir), "--detach", "--set", *SETTINGS],
            capture_output=True, text=True, timeout=120, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )  # fmt: skip
        codes = sorted([run.process.wait(timeout=120), second.returncode])
        assert codes == [0, 2], f"{codes}\n{run.log()}\n{second.stderr}"
        refused = second.stderr if second.returncode == 2 else run.log()
        assert f"{run.run_dir} is in use by " in refused
        assert is_in_use(run.run_dir)
        run.until(lambda: run.updates() > 50, 120, "training")  # its driver has returned
        run.end_well(PERIOD_S)
    record_figure("started twice", "refused", 1, "of 2")
