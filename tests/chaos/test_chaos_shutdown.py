"""A host that shuts down in order, which is no person's stop; and games that a person added."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from live_run import command

from chaos.support import ChaosRun, await_recovery, chaos_run
from rl_cluster.control import Control

pytestmark = [pytest.mark.chaos, pytest.mark.long]

AT_WORK = ("learner_updates", "env_steps")


@pytest.mark.timeout(400)
def test_a_run_whose_host_shuts_down_in_order_is_gone_on_with_and_one_that_is_stopped_is_not(
    tmp_path: Path,
) -> None:
    with chaos_run(tmp_path) as run:
        run.the("keeper").send_signal(signal.SIGTERM)
        assert run.process.wait(timeout=60) == 130
        run.check_nothing_left()
        saved = run.updates()
        assert run.summary()["state"] == "interrupted"
        run.keep()
        start_s = time.time()
        run.await_rise(AT_WORK, start_s)
        assert run.updates() > saved, "everything had been saved"
        session = Control(run.run_dir).read("session")
        run.end_well()
        run.keep()
        assert run.process.wait(timeout=60) == 0, "a person has stopped it: nothing to keep"
        assert Control(run.run_dir).read("session") == session


@pytest.mark.timeout(400)
def test_a_game_that_was_added_under_a_tier_outlives_the_supervisor(tmp_path: Path) -> None:
    tiers = "load.tiers.two={games: 2, environments: 8, batch: 32}"
    with chaos_run(tmp_path, tiers, "load.tier=two") as run:
        added = command("add", run.run_dir, "Second", "--set", "env.name=Catch")
        assert added.returncode == 0, added.stderr
        run.until(lambda: _learns(run, "Second"), 120, "Second to learn")
        killed_s, victim = time.time(), run.the("supervisor")
        run.kill(victim)
        await_recovery(run, "supervisor", victim.pid, killed_s)
        heir_s = time.time()
        for task in ("Catch", "Second"):
            run.await_rise(AT_WORK, heir_s, task=task)
        assert not run.incidents(killed_s, "worker_failed"), run.story()
        assert not run.incidents(killed_s, "task_parked"), run.story()
        run.end_well()


def _learns(run: ChaosRun, task: str) -> bool:
    return task in run.summary()["tasks"] and run.updates(task) > 0
