"""The supervisor's eye on its raylet: one that hangs stops training, and no process dies of it.

Invariant: only a cluster of the run's own is given up for it; on others' Ray itself finds a node
that does not answer.
"""

from __future__ import annotations

from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.control import Control

_SILENT_S = 10.0


class NodeGuard:
    """Watches the raylet of a run's own cluster."""

    def __init__(self, control: Control, hub: TelemetryHub) -> None:
        self._control, self._hub = control, hub
        self._has_answered = False
        self._silent_since_s: float | None = None

    def look(self, answered: bool, now_s: float) -> None:
        """Ask for a new cluster when the raylet has answered nothing for 10 s.

        One that never answered is not missed: the question itself may be at fault.

        Args:
          answered: whether it did at the newest question.
          now_s: the supervisor's watch.
        """
        self._has_answered |= answered
        if answered or not self._has_answered or self._control.requested("recycled"):
            self._silent_since_s = None
        elif self._silent_since_s is None:
            # Not since its last answer: a worker that hangs keeps it from answering, too, and is
            # found and killed within this time.
            self._silent_since_s = now_s
        elif now_s - self._silent_since_s >= _SILENT_S:
            cause = f"it has answered nothing for {now_s - self._silent_since_s:.0f} s: hung"
            action = "a new cluster, and every task resumes"
            self._hub.incident(None, "raylet", "cluster_lost", cause, action)
            self._control.request("recycled")
