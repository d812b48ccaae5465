"""Reboots: every process of a run dies at once, and one command brings it back.

What holds: nothing goes back by more than a checkpoint period, replay comes back but for a block
of each environment and what its journal had not written, and no command but `keep` is needed. The
figure is the time from that command to the first new update.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from chaos.counts import count
from chaos.figures import record_figure, record_spread
from chaos.support import PERIOD_S, ChaosRun, chaos_run

pytestmark = pytest.mark.chaos

REBOOTS = count(30, 1)
_IN_BLOCKS = 16 * 32
"""Transitions that the environments hold in blocks that are not sealed."""
_JOURNAL_LATE_S = 2.0


@pytest.mark.timeout(300 + 120 * REBOOTS)
def test_a_run_comes_back_from_reboots(tmp_path: Path, rng: random.Random) -> None:
    training_s, lost, lost_s = [], [], 0.0
    with chaos_run(tmp_path) as run:
        for _ in range(REBOOTS):
            time.sleep(rng.uniform(PERIOD_S, count(3 * PERIOD_S, PERIOD_S + 2)))
            before = run.summary()["tasks"]["Catch"]
            run.kill_everything()
            start_s = time.time()
            run.keep()
            training_s.append(run.await_rise(("learner_updates",), start_s) - start_s)
            lost.append(_transitions_lost(run, before))
        lost_s = run.end_well()
    record_spread("reboot", "from start to the first new update", training_s, "s")
    record_spread("reboot", "transitions that did not come back", lost, "transitions")
    record_figure("reboot", "most work lost", lost_s, "s")


def _transitions_lost(run: ChaosRun, before: dict[str, object]) -> int:
    """Wait until replay holds again what it held; return what it lacks."""
    held, rate = before["replay"]["transitions"], before["env_frames_per_s"]  # type: ignore[index]
    may_lack = _IN_BLOCKS + float(rate) * _JOURNAL_LATE_S  # type: ignore[arg-type]

    def here() -> int:
        return int(run.summary()["tasks"]["Catch"]["replay"]["transitions"])

    run.until(lambda: here() >= held - may_lack, 20, f"{held} - {may_lack:.0f} transitions")
    return max(0, int(held) - here())
