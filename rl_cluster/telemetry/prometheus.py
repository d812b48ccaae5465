"""How Prometheus calls a metric, and where it finds a run.

Invariant: names follow from the table of metrics alone, so what a run exports and what a dashboard
asks for cannot part. They have Ray's prefix, base units, and what their kind adds
(https://prometheus.io/docs/practices/naming/).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.disk import write_text_atomically
from rl_cluster.telemetry.metrics import Metric

LABELS = ("run", "task")
"""Of every metric; a figure of the whole run has an empty task."""

_PREFIX = "rl_cluster_"
_RAYS_PREFIX = "ray_"
# Endings of our names, what Prometheus has for them, and the factor between their units.
_ENDINGS = (
    ("_per_s", "_per_second", 1.0),
    ("_ms", "_seconds", 1e-3),
    ("_s", "_seconds", 1.0),
    ("_share", "_ratio", 1.0),
)
# Units that a gauge's own name does not tell.
_UNITS = {
    "share, 0 to 1": "_ratio",
    "share of human": "_ratio",
    "env steps": "_env_steps",
    "versions": "_versions",
    "nats": "_nats",
}


@dataclass(frozen=True)
class Exported:
    """A metric as it is handed to Ray."""

    told_name: str
    """Ray puts its own prefix before it, and `_total` behind a counter's."""
    is_counter: bool
    scale: float
    """From the table's unit to the exported one."""

    @property
    def name(self) -> str:
        """As Prometheus has it."""
        return f"{_RAYS_PREFIX}{self.told_name}{'_total' if self.is_counter else ''}"

    @property
    def is_in_seconds(self) -> bool:
        """Whether it is a time."""
        return self.told_name.endswith("_seconds")


def exported(metric: Metric) -> Exported:
    """What becomes of a metric of the table."""
    name, is_counter = metric.name, metric.kind == "counter"
    for ending, theirs, scale in _ENDINGS:
        if name.endswith(ending):
            name = name.removesuffix(ending) + theirs
            return Exported(_PREFIX + name, is_counter, scale)
    unit = _UNITS.get(metric.unit, "")
    if not is_counter and not name.endswith(unit):
        name += unit
    return Exported(_PREFIX + name, is_counter, 1.0)


def addresses_file(run_dir: Path) -> Path:
    """The file that tells Prometheus where a run's figures are (its file-based discovery)."""
    return run_dir / "control" / "prometheus.json"


def write_addresses(run_dir: Path, addresses: Sequence[str]) -> None:
    """Replace that file; no addresses: the run has ended.

    Raises:
      OSError: the disk is full or gone; the old file stays.
    """
    found = [{"targets": list(addresses)}] if addresses else []
    write_text_atomically(addresses_file(run_dir), json.dumps(found))
