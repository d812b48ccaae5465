"""Faults that come back with every restart: hangs, constructors that fail, a learner that dies.

What holds: the task is parked with its reason, the other task goes on without a single restart,
and `rl-cluster resume RUN TASK` tries again, so that what was mended trains.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from live_run import EXPERIMENTS, command, lines

from chaos.counts import only_in_full
from chaos.figures import record_figure
from chaos.support import PERIOD_S, SETTINGS, ChaosRun, chaos_run, check_parameters_finite
from rl_cluster.cluster import runtime
from rl_cluster.run_directory import read_address

pytestmark = pytest.mark.chaos

FAULTS = {
    "hang_with_the_interpreter": ("fault=hang_with_the_interpreter", "breaks_after=60"),
    "hang": ("fault=hang", "breaks_after=60"),
    "exiting_constructor": ("fault=exit",),
    "raising_constructor": ("fault=raise",),
}
REASONS = {"hang_with_the_interpreter": "no answer", "hang": "without progress",
           "exiting_constructor": "Died", "raising_constructor": "the game broke"}  # fmt: skip
RULE = ("supervisor.max_restarts=2", "supervisor.window_s=300", "supervisor.backoff_s=0.5")


def _start(tmp_path: Path, *settings: str) -> ChaosRun:
    config = tmp_path / "two.yaml"
    text = (EXPERIMENTS / "catch.yaml").read_text().replace("[Catch]", "{Good: {}, Bad: {}}")
    config.write_text(text)
    names = ("tasks.Good.env.name=Catch", "tasks.Bad.env.name=Catch")
    return ChaosRun(config, tmp_path / "run", *SETTINGS, *names, *RULE, *settings)


@only_in_full("most of a minute for each")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_game_is_parked_and_tried_again(tmp_path: Path, name: str) -> None:
    mended = tmp_path / "mended"
    settings = [f"tasks.Bad.env.settings.{setting}" for setting in FAULTS[name]]
    settings += ["tasks.Bad.env.entry=faulty_env:make", "supervisor.working_timeout_s=5"]
    with _start(tmp_path, *settings, f"tasks.Bad.env.settings.mended_by={mended}") as run:
        _check_parked(run, name, REASONS[name])
        mended.touch()
        _check_tried_again(run)


@only_in_full("two minutes of restarts")
@pytest.mark.timeout(400)
def test_a_learner_that_dies_after_each_start_is_parked_and_tried_again(tmp_path: Path) -> None:
    with _start(tmp_path) as run:
        run.until(lambda: run.updates("Bad") > 0, 120, "training")
        with _Killer(run):
            _check_parked(run, "learner dies 2 s after each start", "Died")
        _check_tried_again(run)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_evaluator_that_was_given_up_is_tried_again_when_a_person_says_so(
    tmp_path: Path,
) -> None:
    with chaos_run(tmp_path, *RULE) as run:
        for deaths in range(1, 4):
            run.kill(run.the("evaluator"))
            run.until(lambda n=deaths: len(run.incidents(kind="worker_failed")) == n, 30, "noticed")
        run.until(lambda: run.incidents(kind="worker_parked"), 30, "given up")
        assert command("resume", run.run_dir, "Catch").returncode == 0
        evaluated = run.run_dir / "Catch" / "evaluations.jsonl"
        before = len(lines(evaluated))
        run.until(lambda: len(lines(evaluated)) > before, 60, "an evaluation")
        assert len(run.incidents(kind="worker_parked")) == 1
        run.end_well()


def _check_parked(run: ChaosRun, name: str, reason: str) -> None:
    def bad() -> dict[str, object]:
        task: dict[str, object] = run.summary()["tasks"]["Bad"]
        return task

    start_s = time.time()
    run.until(lambda: bad()["state"] == "failed", 240, "a parked task")
    assert reason in str(bad()["failure"]), bad()["failure"]
    failed = [i for i in run.incidents(0, "worker_failed") if i["task"] == "Bad"]
    record_figure(name, "failures before the task was parked", len(failed), "times")
    record_figure(name, "from the first failure to parked", time.time() - failed[0]["time"], "s")
    run.await_rise(("learner_updates", "env_steps"), start_s, task="Good")
    good = run.summary()["tasks"]["Good"]
    assert good["restarts"] == 0, run.story()
    assert len(failed) == 3, "two restarts were allowed"


def _check_tried_again(run: ChaosRun) -> None:
    resumed_s = time.time()
    assert command("resume", run.run_dir, "Bad").returncode == 0
    run.await_rise(("learner_updates", "env_steps"), resumed_s, task="Bad")
    run.end_well(PERIOD_S)
    for task in ("Good", "Bad"):
        check_parameters_finite(run.run_dir / task)


class _Killer:
    """Kills the learner of Bad 2 s after each of its starts, until it is left."""

    def __init__(self, run: ChaosRun) -> None:
        self._run_dir, self._left = run.run_dir, threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> None:
        runtime.join(read_address(self._run_dir))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        runtime.leave()

    def _kill(self) -> None:
        killed = -1
        while not self._left.wait(0.2):
            pid = self._learner()
            if pid not in (None, killed):
                time.sleep(2)
                os.kill(pid, signal.SIGKILL)
                killed = pid

    def _learner(self) -> int | None:
        try:
            actor = ray.get_actor("learner:Bad")
            pid: int = ray.get(actor.health.remote(), timeout=5).pid
        except (ValueError, ray.exceptions.RayError):
            return None
        return pid
