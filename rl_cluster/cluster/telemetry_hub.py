"""Everything that a run writes about itself, by one writer: summary, metrics, incidents.

Invariant: telemetry never stops training. What a full disk refuses is named on the supervisor's
error stream, and the figures go on as soon as there is room; incidents wait for it in memory.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from rl_cluster.cluster.ray_metrics import RayMetricsSink
from rl_cluster.config import RunConfig
from rl_cluster.telemetry.incidents import Incident, IncidentLog
from rl_cluster.telemetry.prometheus import write_addresses
from rl_cluster.telemetry.summary import Summary, write_summary
from rl_cluster.telemetry.writers import MetricsWriter, open_writer

_log = logging.getLogger(__name__)
_MOST_UNWRITTEN = 1_000


class TelemetryHub:
    """The run's files, TensorBoard and Ray's metrics."""

    def __init__(self, run: str, run_dir: Path, config: RunConfig) -> None:
        self._run_dir = run_dir
        self._incidents = IncidentLog(run_dir)
        self._unwritten: deque[Incident] = deque()
        self._writer: MetricsWriter = open_writer(
            run_dir, RayMetricsSink(run), tensorboard=config.telemetry.tensorboard
        )

    @property
    def incidents(self) -> int:
        """Incidents of the run, earlier sessions included."""
        return self._incidents.count

    def incident(
        self, task: str | None, worker: str | None, kind: str, cause: str, action: str,
        detail: str = "",
    ) -> None:  # fmt: skip
        """Write one line to incidents.jsonl, after those that a full disk refused."""
        record = Incident(time.time(), task, worker, kind, cause, action, detail)
        if len(self._unwritten) < _MOST_UNWRITTEN:
            self._unwritten.append(record)
        else:
            _log.error("incident not kept: %s", record)
        self._writer.incident(record)
        self._write_incidents()

    def _write_incidents(self) -> None:
        while self._unwritten:
            try:
                self._incidents.append(self._unwritten[0])
            except OSError as error:
                _log.error("incident not written yet (%s): %s", error, self._unwritten[-1])
                return
            self._unwritten.popleft()

    def row(
        self,
        wall_s: float,
        task: str | None,
        env_steps: int | None,
        values: Mapping[str, float | None],
    ) -> None:
        """Write one row of metrics everywhere."""
        try:
            self._writer.write(time.time(), wall_s, task, env_steps, values)
        except OSError as error:
            _log.error("metrics not written: %s", error)

    def summary(self, summary: Summary) -> None:
        """Replace summary.json."""
        try:
            write_summary(self._run_dir, summary)
        except OSError as error:
            _log.error("summary not written: %s", error)

    def flush(self) -> None:
        """Make rows visible to readers."""
        self._write_incidents()
        try:
            self._writer.flush()
        except OSError as error:
            _log.error("metrics not flushed: %s", error)

    def close(self) -> None:
        """Close every file."""
        self.tell_prometheus([])
        try:
            self._writer.close()
        except OSError as error:
            _log.error("metrics not closed: %s", error)
        self._incidents.close()

    def tell_prometheus(self, addresses: list[str]) -> bool:
        """Say where figures can be read from now on; return whether the disk took it."""
        try:
            write_addresses(self._run_dir, addresses)
        except OSError as error:
            _log.error("addresses for Prometheus not written: %s", error)
            return False
        return True
