"""The clock of the host jumps by an hour, forth and back: nobody is accused, nothing ends early."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from chaos.counts import count, only_in_full
from chaos.figures import record_figure
from chaos.support import ChaosRun, CATCH, SETTINGS, check_parameters_finite
from live_run import lines

pytestmark = [pytest.mark.chaos, only_in_full("a minute with two jumps in it")]
HOUR_S = 3_600
MAX_SECONDS = 45
LIBRARY = "faketime/libfaketimeMT.so.1"


def faketime_library() -> Path:
    """The library, from its Debian package; skips where that cannot be had."""
    for _ in range(2):
        found = sorted(Path("/usr/lib").glob(f"*/{LIBRARY}"))
        if found:
            return found[0]
        if os.geteuid() or not shutil.which("apt-get"):
            break
        subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", "faketime"],
            capture_output=True,
            timeout=120,
        )
    pytest.skip("libfaketime is not installed: apt-get install faketime")


class FakeClock:
    """The time of day of all processes that are started with its environment."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.set(0)
        for name, value in {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "NO_FAKE_STAT": "1",
        }.items():
            patch.setenv(name, value)

    def set(self, offset_s: int) -> None:
        """Let the time of day be so many seconds from the true one, from now on."""
        beside = self._path.with_suffix(".new")
        beside.write_text(f"{offset_s:+d}\n")
        beside.replace(self._path)


@pytest.mark.parametrize("jumps", [(HOUR_S, -HOUR_S), (-HOUR_S, HOUR_S)])
def test_a_jump_of_the_clock_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumps: tuple[int, int]
) -> None:
    with monkeypatch.context() as patch:
        clock = FakeClock(tmp_path / "clock", patch)
        settings = (*SETTINGS, f"max_seconds={MAX_SECONDS}")
        run = ChaosRun(CATCH, tmp_path / "run", *settings)
    with run:
        run.await_training()
        for offset_s in jumps:
            clock.set(offset_s)
            run.until(lambda o=offset_s: _offset_s(run) == pytest.approx(o, abs=30), 30, "a jump")  # type: ignore[misc]
            base = run.updates()
            run.until(lambda b=base: run.updates() > b + 100, 60, "updates")  # type: ignore[misc]
            status = json.loads((run.run_dir / "summary.json").read_text())
            assert status["state"] == "running"
        assert run.finish(timeout_s=120) == 0, run.story()
        run.check_nothing_left()
        summary = run.summary()
        assert summary["state"] == "completed" and summary["tasks"]["Catch"]["restarts"] == 0
        assert MAX_SECONDS <= summary["wall_s"] < MAX_SECONDS + 60
        wall_s = [row["wall_s"] for row in lines(run.run_dir / "metrics.jsonl")]
        assert wall_s == sorted(wall_s)
        kinds = {incident["kind"] for incident in run.incidents()}
        assert not kinds & {"worker_failed", "worker_replaced", "cluster_lost"}, run.story()
        check_parameters_finite(run.run_dir / "Catch")
        record_figure("clock jumps of an hour", "workers killed", 0, "workers")


def _offset_s(run: ChaosRun) -> float:
    return float(run.summary()["updated_at"] - time.time())
