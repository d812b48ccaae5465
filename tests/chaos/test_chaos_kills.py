"""kill -9 of every process of a run, at random moments, those within a save included.

What holds: the run goes on by itself, whoever died works again, no counter goes back by more than
a checkpoint period, and nothing is left at the end; of the driver's death nobody takes any notice,
and `rl-cluster stop` ends its run. The figure is the time from the signal until
the replaced one is seen to work again, the pace of the figures themselves (two ticks) included.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chaos.counts import FULL, count
from chaos.figures import record_figure, record_spread
from chaos.support import CATCH, DAEMONS, SETTINGS, WORKERS, ChaosRun, await_recovery

pytestmark = pytest.mark.chaos

ROLES = (*WORKERS, "supervisor", "keeper", *DAEMONS, "driver")
KILLS = count(20, 1)
KILLS_OF_ONE_SESSION = {"driver": 1}


IN_PART = ("replay", "supervisor", "raylet")


@pytest.mark.timeout(count(3600, 600))
@pytest.mark.parametrize("roles", [[r] for r in ROLES] if FULL else [IN_PART], ids="+".join)
def test_whoever_is_killed_works_again(
    tmp_path: Path, roles: Sequence[str], rng: random.Random
) -> None:
    victims = [role for role in roles for _ in range(KILLS)]
    recovery_s: dict[str, list[float]] = {role: [] for role in roles}
    lost_s = 0.0
    size = KILLS_OF_ONE_SESSION.get(roles[0], len(victims))
    for start in range(0, len(victims), size):
        with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, resume=start > 0) as run:
            run.await_training()
            for role in victims[start : start + size]:
                recovery_s[role].append(_kill(run, role, rng))
            lost_s = max(lost_s, run.end_well())
    for role, seconds in recovery_s.items():
        record_spread(f"kill -9 of {role}", "until it works again", seconds, "s")
    record_figure(f"kill -9 of {'+'.join(roles)}", "most work lost", lost_s, "s")


def _kill(run: ChaosRun, role: str, rng: random.Random) -> float:
    """Kill it at a random moment, every other time within a save; return seconds to recovery."""
    time.sleep(rng.uniform(0, count(5.0, 1.0)))
    victim = run.the(role)
    if role in ("learner", "replay") and rng.random() < 0.5:
        _await_save(run)
    killed_s = time.time()
    run.kill(victim)
    return await_recovery(run, role, victim.pid, killed_s) - killed_s


def _await_save(run: ChaosRun) -> None:
    """Return while a checkpoint is being written, or soon after."""
    saves, deadline_s = run.run_dir / "Catch" / "checkpoints", time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError):
        while not any(saves.glob("*.tmp-*")) and time.monotonic() < deadline_s:
            time.sleep(0.001)
