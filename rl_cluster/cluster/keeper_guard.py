"""The supervisor's eye on the keeper, which keeps an eye on the supervisor.

Invariant: an heir is given time to take over before another is sent for.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rl_cluster.cluster.keeper import launch
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.control import Control, PulseReader

_KEEPER_SILENT_S = 13.0
_DEAD_S = 1.0


class KeeperGuard:
    """Watches one run's keeper."""

    def __init__(self, run_dir: Path, control: Control, hub: TelemetryHub) -> None:
        self._run_dir, self._control, self._hub = run_dir, control, hub
        self._pulse, self._heir_is_due = PulseReader(control, "keeper", 0.0), False

    def look(self, now_s: float) -> None:
        """Replace a keeper that died or hangs, as it would replace the supervisor."""
        process = self._control.signed("keeper")
        if process is None:  # no keeper was asked for
            return
        alive, silence_s = process.alive, self._pulse.silence_s(now_s)
        if silence_s < (_KEEPER_SILENT_S if alive or self._heir_is_due else _DEAD_S):
            self._heir_is_due = self._heir_is_due and not alive
            return
        cause = "it does not get on: hung" if alive else "it died"
        self._hub.incident(None, "keeper", "worker_failed", cause, "another is started")
        if alive:
            os.kill(process.pid, signal.SIGKILL)
        launch(self._run_dir)
        self._heir_is_due = True
        self._pulse.reset(now_s)
