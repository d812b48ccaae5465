"""Others take the memory: the load steps down at once, and comes back when they are gone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from chaos.counts import only_in_full
from chaos.figures import record_figure
from chaos.support import CATCH, SETTINGS, ChaosRun
from rl_cluster.sensors import memory_available_share

pytestmark = [pytest.mark.chaos, only_in_full("a cluster is made anew in it, twice")]
ROW = "memory balloon beside us"
OWN_BYTES = 5 << 30
"""What the run may take of the memory that is there before it starts."""
STEP_BYTES, MOST_BYTES = 256 << 20, 12 << 30
BALLOON = """
import sys
held = []
for line in sys.stdin:
    held.append(bytearray(b"x") * int(line))
    print(flush=True)
"""


class Balloon:
    """A process that takes memory."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", BALLOON], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def grow(self, nbytes: int) -> None:
        """Take more; returns when every page of it is there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{nbytes}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline()
        self.nbytes += nbytes

    def burst(self) -> None:
        """Give it all back."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def balloon() -> Iterator[Balloon]:
    held = Balloon()
    try:
        yield held
    finally:
        held.burst()


def low_share() -> float:
    """A threshold that the run alone does not reach, and a balloon of a few GB does."""
    share, total = memory_available_share(), psutil.virtual_memory().total
    assert share is not None
    low = share - OWN_BYTES / total
    if low < 0.1 or share * total < OWN_BYTES + MOST_BYTES / 2:
        pytest.skip(f"too little memory for a run and a balloon: {share * total / 1e9:.1f} GB")
    return low


@pytest.mark.timeout(600)
def test_the_load_steps_down_while_others_hold_memory_and_comes_back(tmp_path: Path) -> None:
    config = tmp_path / "three.yaml"
    text = CATCH.read_text()
    assert "tasks: [Catch]" in text
    config.write_text(text.replace("tasks: [Catch]", "tasks: {Catch: {}, B: {}, C: {}}"))
    low = low_share()
    settings = (
        "tasks.B.env.name=Catch",
        "tasks.C.env.name=Catch",
        "load.tier=light",
        "load.tiers.light={games: 3, environments: 32, batch: 64}",
        "load.dwell_s=4",
        "load.cooldown_s=3",
        "load.settle_s=3",
        f"load.pressure.memory_available_low={low:.4f}",
        f"load.pressure.memory_available_high={low + 0.02:.4f}",
        "load.pressure.memory_stall_high=1",
        "load.pressure.memory_stall_low=1",
        "load.pressure.others_cpu_low=1",
    )
    with ChaosRun(config, tmp_path / "run", *SETTINGS, *settings) as run, balloon() as held:
        run.until(lambda: all(run.updates(task) > 50 for task in ("Catch", "B", "C")), 180, "three")
        assert not run.incidents(kind="load_changed"), run.story()
        squeezed_s = _squeeze(run, held)
        # What was shed gives memory back, which the others take, too.
        run.until(lambda: _has_grown(held, run) and _games(run) < 3, 90, "a game less")
        causes = [i["cause"] for i in run.incidents(kind="load_changed")]
        assert all("memory available is" in cause for cause in causes), causes
        assert "without optional work" in causes[0], "optional work goes first"
        record_figure(ROW, "first step down after", squeezed_s, "s")
        held.burst()
        start_s = time.monotonic()
        run.until(lambda: run.summary()["tier"]["effective"] == "light", 180, "the whole tier")
        record_figure(ROW, "whole again after", time.monotonic() - start_s, "s")
        for task in ("Catch", "B", "C"):
            run.await_rise(("learner_updates",), time.time(), task=task)
        assert all(t["restarts"] == 0 for t in run.summary()["tasks"].values())
        run.end_well()


def _has_grown(held: Balloon, run: ChaosRun) -> bool:
    """Take what is above the threshold."""
    low = _threshold(run)
    while held.nbytes < MOST_BYTES and (memory_available_share() or 0.0) > low:
        held.grow(STEP_BYTES)
    return True


def _squeeze(run: ChaosRun, held: Balloon) -> float:
    """Grow until the load changes; seconds from the memory's end to the incident."""
    _has_grown(held, run)
    short_s = time.monotonic()
    run.until(lambda: run.incidents(kind="load_changed"), 30, "a step down")
    return time.monotonic() - short_s


def _threshold(run: ChaosRun) -> float:
    from rl_cluster.config_file import load

    return load(run.run_dir / "config.yaml").load.pressure.memory_available_low


def _games(run: ChaosRun) -> int:
    """Tasks at work."""
    states = [task["state"] for task in run.summary()["tasks"].values()]
    return len(states) - states.count("queued")
