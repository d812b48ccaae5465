"""The clock of the host jumps by an hour, forth and back: nobody is accused, nothing ends early."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from live_run import lines

from chaos.counts import only_in_full
from chaos.figures import record_figure
from chaos.support import CATCH, SETTINGS, ChaosRun, check_parameters_finite

pytestmark = [pytest.mark.chaos, only_in_full("a minute with two jumps in it, in both directions")]
HOUR_S = 3_600
MAX_SECONDS = 90
SHIM = Path(__file__).with_name("fake_clock.c")
"""libfaketime cannot let the monotonic clock alone: with FAKETIME_DONT_FAKE_MONOTONIC its
clock_nanosleep answers EINVAL (version 0.9.10), so that no Python can sleep."""


class FakeClock:
    """The time of day of all processes that are started with its environment.

    Skips where there is no C compiler.
    """

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self._path, library = directory / "offset", directory / "fake_clock.so"
        if (compiler := shutil.which("cc")) is None:
            pytest.skip("no C compiler, which the false clock needs")
        build = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
        subprocess.run(build, check=True)
        self._path.write_bytes(struct.pack("q", 0))
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("FAKE_CLOCK_FILE", str(self._path))

    def set(self, offset_s: int) -> None:
        """Let the time of day be so many seconds from the true one, from now on."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", offset_s))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jumps", [(HOUR_S, -HOUR_S), (-HOUR_S, HOUR_S)])
def test_a_jump_of_the_clock_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumps: tuple[int, int]
) -> None:
    with monkeypatch.context() as patch:
        clock = FakeClock(tmp_path, patch)
        settings = (*SETTINGS, f"max_seconds={MAX_SECONDS}")
        run = ChaosRun(CATCH, tmp_path / "run", *settings)
    with run:
        run.await_training()
        for offset_s in jumps:
            clock.set(offset_s)
            run.until(lambda o=offset_s: _offset_s(run) == pytest.approx(o, abs=30), 30, "a jump")  # type: ignore[misc]
            base = run.updates()
            run.until(lambda b=base: run.updates() > b + 20, 60, "updates")  # type: ignore[misc]
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
