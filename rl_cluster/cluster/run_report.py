"""The run as a whole in figures: its rows of metrics and its summary.

Invariant: both are made from the same reports of its tasks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from rl_cluster.cluster import host
from rl_cluster.cluster.gcs import GcsSilent
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.telemetry.summary import RunState, Summary, Tier


class RunReport:
    """What one run writes of itself."""

    def __init__(self, name: str, max_seconds: float | None, hub: TelemetryHub) -> None:
        self._name, self._max_seconds, self._hub = name, max_seconds, hub
        self._addresses: list[str] | None = None
        self.object_store_bytes: int | None = None
        """In use at the last look."""

    def write_rows(self, reports: Mapping[str, TaskReport], wall_s: float) -> None:
        """Write a row of every metric."""
        self._tell_prometheus()
        self.object_store_bytes = host.object_store_bytes()
        for task, report in reports.items():
            self._hub.row(wall_s, task, report.env_steps, report.metrics())
        self._hub.row(
            wall_s,
            None,
            None,
            {
                "incidents": self._hub.incidents,
                "object_store_bytes": self.object_store_bytes,
                "host_memory_used_bytes": host.host_memory_used_bytes(),
                "run_memory_bytes": host.run_memory_bytes(),
                "wall_s": wall_s,
            },
        )
        self._hub.flush()

    def _tell_prometheus(self) -> None:
        """Nodes come and go while a run is live."""
        try:
            addresses = host.metrics_addresses()
        except GcsSilent:  # they stand as they were, and the next row asks again
            return
        if addresses != self._addresses and self._hub.tell_prometheus(addresses):
            self._addresses = addresses

    def compose(
        self, state: RunState, reports: Mapping[str, TaskReport], wall_s: float, tier: Tier
    ) -> Summary:
        """What summary.json holds."""
        return {
            "run": self._name,
            "state": state,
            "updated_at": time.time(),
            "wall_s": wall_s,
            "max_seconds": self._max_seconds,
            "tier": tier,
            "incidents": self._hub.incidents,
            "object_store_bytes": self.object_store_bytes,
            "tasks": {task: report.summary() for task, report in reports.items()},
        }
