"""Ray's metrics as one more place that a run's figures go to: Prometheus reads them at its node.

Invariant: what is set here has the name and unit that `telemetry/prometheus.py` derives. A counter
holds the whole total, so that one read alone says where the run stands; Ray adds a process's
counts up and never takes any back, so a total that a restart threw back stands still until it has
been passed.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.prometheus import LABELS, exported
from rl_cluster.telemetry.rows import Row


class RayMetricsSink:
    """Gauges and counters of one run, exported by the node that this process is on."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._exported = {name: exported(metric) for name, metric in METRICS.items()}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        for name, as_told in self._exported.items():
            text = METRICS[name].description
            if as_told.is_counter:
                self._counters[name] = Counter(as_told.told_name, text, LABELS)
            else:
                self._gauges[name] = Gauge(as_told.told_name, text, LABELS)
        self._totals: dict[tuple[str, str], float] = {}
        """Highest value told, by metric and task."""

    def write(self, row: Row) -> None:
        """Set every known value."""
        task = row.task or ""
        tags = {"run": self._run, "task": task}
        for name, value in row.known_values.items():
            scaled = value * self._exported[name].scale
            if name in self._gauges:
                self._gauges[name].set(scaled, tags)
            else:
                self._count(name, scaled, tags)

    def incident(self, incident: Incident) -> None:
        """Prometheus holds numbers only; `incidents` counts them."""

    def _count(self, name: str, total: float, tags: dict[str, str]) -> None:
        known = (name, tags["task"])
        grown = total - self._totals.get(known, 0.0)
        if grown > 0 or known not in self._totals:
            # Not `inc`, which refuses 0: what never happened would be missing instead.
            self._counters[name]._record(max(0.0, grown), tags)
            self._totals[known] = total

    def flush(self) -> None:
        """Ray collects by itself, every ten seconds."""

    def close(self) -> None:
        """Ray's node forgets a gauge soon after its process has ended."""
