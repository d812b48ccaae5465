"""The supervisor's eye on the tracker, the process that tells Weights & Biases of the run.

Invariant: nothing here waits for W&B but `finish`, which has its limit; whatever becomes of the
tracker is an incident, and training goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.control import Control, PulseReader
from rl_cluster.supervision.spacing import Spacing
from rl_cluster.telemetry.tracker_process import ROLE, launch

_SILENT_S = 300.0  # opening a W&B run may take 90 s, and a slow upload longer
_STARTING_S = 30.0
_RESTARTS_S = (60.0, 6 * 3_600.0, 24 * 3_600.0)
_LOOK_S = 0.1
_HURRIED_S, _CALM_S = 2.0, 30.0

_log = logging.getLogger(__name__)


class TrackerGuard:
    """Watches one run's tracker, where one was asked for."""

    def __init__(self, run_dir: Path, control: Control, hub: TelemetryHub, wanted: bool) -> None:
        self._run_dir, self._control, self._hub, self._wanted = run_dir, control, hub, wanted
        self._pulse = PulseReader(control, ROLE, 0.0)
        self._spacing, self._launched_s = Spacing(*_RESTARTS_S), float("-inf")
        self._said = control.read("tracker_said")
        self._ids: dict[str, str] = {}

    def look(self, ids: Mapping[str, str], now_s: float) -> None:
        """Pass on what it said, and replace one that died or hangs.

        Args:
          ids: task to its W&B run's id.
          now_s: the supervisor's watch.
        """
        if self._wanted:
            try:
                self._look(ids, now_s)
            except OSError as error:  # a full disk; the next look tries again
                _log.error("the tracker is not looked after: %s", error)

    def _look(self, ids: Mapping[str, str], now_s: float) -> None:
        if ids != self._ids:
            self._control.write("trackers", dict(ids))
            self._ids = dict(ids)
        said = self._control.read("tracker_said")
        if said is not None and said != self._said:
            self._hub.incident(None, ROLE, said["kind"], said["cause"], said["action"])
            self._said = said
        process = self._control.signed(ROLE)
        alive, silence_s = process is not None and process.alive, self._pulse.silence_s(now_s)
        starting = now_s - self._launched_s < _STARTING_S
        if (alive and silence_s < _SILENT_S) or starting or self._spacing.wait_s(now_s) > 0:
            return
        if process is not None and alive:
            os.kill(process.pid, signal.SIGKILL)
        self._launch(now_s, "it does not get on: hung" if alive else "it died, see tracker.log")

    def _launch(self, now_s: float, cause: str) -> None:
        if self._launched_s >= 0:
            self._hub.incident(None, ROLE, "worker_failed", cause, "another is started")
        launch(self._run_dir)
        self._spacing.done(now_s)
        self._pulse.reset(now_s)
        self._launched_s = now_s

    def finish(self, hurried: bool) -> None:
        """Let it tell the rest; what W&B has not in time stays on disk, for `wandb sync`."""
        process = self._control.signed(ROLE)
        if not self._wanted or process is None or not process.alive:
            return
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + (_HURRIED_S if hurried else _CALM_S)
        while process.alive and time.monotonic() < deadline_s:
            self._control.beat("supervisor")
            time.sleep(_LOOK_S)
