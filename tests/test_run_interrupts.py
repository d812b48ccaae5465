"""Interrupted, everything is saved; at random moments, with resume: chaos/test_chaos_signals.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from live_run import EXPERIMENTS, LiveRun

SETTINGS = ("max_seconds=600", "defaults.checkpoint.period_s=3", "defaults.evaluation.period_s=4")
CATCH = EXPERIMENTS / "catch.yaml"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
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


def holds_sigterm_back(pid: int) -> bool:
    """Whether it has blocked the signal, to look for it when it likes (proc(5): SigBlk)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize(
    "delay_s",
    [0.0, 3.0, *(pytest.param(each, marks=pytest.mark.long) for each in (1.5, 4.5, 6.0))],
)
def test_a_signal_while_starting_ends_it_cleanly(tmp_path: Path, delay_s: float) -> None:
    with LiveRun(CATCH, tmp_path / "run", *SETTINGS) as run:
        deadline_s = time.monotonic() + 60
        while not holds_sigterm_back(run.process.pid):  # before, Python ends by it, and cannot else
            assert time.monotonic() < deadline_s, run.log()
            time.sleep(0.01)
        time.sleep(delay_s)
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
