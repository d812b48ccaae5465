"""SIGSTOP of every process of a run, and SIGCONT a minute later.

What holds: who stands still is found, killed and replaced before it thaws, and whatever did thaw
writes nothing: no checkpoint of an epoch that was over, no evaluation and no version out of turn.
The figures are the times from the signal until it was found, and until its heir works.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from chaos.counts import FULL, count, only_in_full
from chaos.figures import record_figure
from chaos.support import (
    DAEMONS,
    WORKERS,
    ChaosRun,
    await_discovery,
    await_recovery,
    chaos_run,
    stale_writes,
)

pytestmark = pytest.mark.chaos

ROLES = (*WORKERS, "supervisor", "keeper", *DAEMONS)
FROZEN_S = count(60.0, 0.0)
KEEP_ALL = "defaults.checkpoint.keep=100000"
"""So that no stale write is cleared away before it is looked for."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "roles", [(r,) for r in ROLES] if FULL else [("rollout", "learner")], ids="+".join
)
def test_who_is_frozen_is_replaced_and_writes_nothing_when_it_thaws(
    tmp_path: Path, roles: tuple[str, ...], rng: random.Random
) -> None:
    with chaos_run(tmp_path, KEEP_ALL) as run:
        time.sleep(rng.uniform(0, 3))
        victims = {role: run.the(role) for role in roles}
        stopped_s = time.time()
        for victim in victims.values():
            victim.send_signal(signal.SIGSTOP)
        for role, victim in victims.items():
            _measure(run, role, victim, stopped_s)
        time.sleep(max(0.0, stopped_s + FROZEN_S - time.time()))
        for victim in victims.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)
        run.await_rise(("learner_updates", "env_steps"), time.time())
        run.end_well()
        stale = stale_writes(run.run_dir / "Catch")
        record_figure(f"freeze of {'+'.join(roles)}", "stale writes", stale, "writes")
        assert stale == 0


def _measure(run: ChaosRun, role: str, victim: psutil.Process, stopped_s: float) -> None:
    found_s = await_discovery(run, role, stopped_s)
    assert run.until(lambda: not _lives(victim), 60, f"the end of the frozen {role}")
    works_s = await_recovery(run, role, victim.pid, found_s)
    record_figure(f"freeze of {role}", "until found", found_s - stopped_s, "s")
    record_figure(f"freeze of {role}", "until its heir works", works_s - stopped_s, "s")


def _lives(victim: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE
    return False


@only_in_full("as with a driver that is killed")
@pytest.mark.timeout(300)
def test_a_frozen_driver_changes_nothing(tmp_path: Path) -> None:
    with chaos_run(tmp_path) as run:
        run.process.send_signal(signal.SIGSTOP)
        stopped_s = time.time()
        run.await_rise(("learner_updates", "env_steps"), stopped_s)
        time.sleep(FROZEN_S)
        assert not run.incidents(stopped_s), run.story()
        run.process.send_signal(signal.SIGCONT)
        run.end_well()
