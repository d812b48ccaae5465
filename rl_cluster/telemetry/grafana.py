"""Grafana's dashboards of a run, made from the table of metrics.

Invariant: every metric of the table stands in exactly one panel, with its meaning and how to read
it. The files in rl_cluster/data/grafana are what `python -m rl_cluster.telemetry.grafana` writes; a
test holds them equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rl_cluster.telemetry.metrics import METRICS, Metric
from rl_cluster.telemetry.prometheus import exported

DIRECTORY = Path(__file__).parent.parent / "data" / "grafana"
DATASOURCE = "rl-cluster"
"""Identity of the Prometheus that the dashboards ask."""

_BOARDS = {
    "training": ("progress", "speed", "learning", "returns"),
    "data": ("replay", "network", "stream"),
    "health": ("health",),
}
"""File name to the groups of metrics on it."""
_TOGETHER = (
    ("env_frames_per_s", "learner_samples_per_s"),
    ("learner_wait_share", "rollout_wait_share"),
    ("samples_per_insert_wanted", "samples_per_insert_actual"),
    ("replay_age_p50", "replay_age_p95"),
    ("policy_lag_p50", "policy_lag_p95"),
    (
        "network_block_bytes_per_s",
        "network_unpacked_bytes_per_s",
        "network_weights_bytes_per_s",
    ),
    ("return_mean", "evaluation_mean_return", "evaluation_random_mean_return", "best_mean_return"),
    ("object_store_bytes", "host_memory_used_bytes", "run_memory_bytes"),
)
"""Metrics that are read against each other, in one panel."""
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8  # of Grafana's 24 columns; rows of 30 pixels
_SCHEMA = 39  # of Grafana 10.3; later ones bring it up to theirs
_ALL_TASKS = 'run="$run", task=~"$task"'
_UNITS = {"bytes": "bytes", "share, 0 to 1": "percentunit", "share of human": "percentunit"}


@dataclass(frozen=True)
class Panel:
    """One chart."""

    metrics: tuple[Metric, ...]

    @property
    def group(self) -> str:
        """Section that it stands in."""
        return self.metrics[0].group

    @property
    def title(self) -> str:
        """Names of its metrics, as the rest of the system has them."""
        return ", ".join(metric.name for metric in self.metrics)

    @property
    def description(self) -> str:
        """What each metric means and how it is read."""
        return "\n\n".join(
            f"**{metric.name}** ({metric.unit}): {metric.meaning} {metric.how_to_read}"
            for metric in self.metrics
        )

    @property
    def unit(self) -> str:
        """Grafana's name of the unit."""
        first = self.metrics[0]
        return "s" if exported(first).is_in_seconds else _UNITS.get(first.unit, "short")


def expression(metric: Metric) -> str:
    """What Prometheus is asked for.

    A supervisor that was replaced leaves its last totals behind: the highest is the newest.
    """
    if metric.scope == "run":
        return f'max({exported(metric).name}{{run="$run"}})'
    return f"max by (task) ({exported(metric).name}{{{_ALL_TASKS}}})"


def panels() -> Iterator[Panel]:
    """Every panel, in the order of the table."""
    placed: set[str] = set()
    for name, metric in METRICS.items():
        if name not in placed:
            names = next((group for group in _TOGETHER if name in group), (name,))
            placed.update(names)
            yield Panel((metric,) if len(names) == 1 else tuple(METRICS[n] for n in names))


def render() -> dict[str, str]:
    """Text of every dashboard, by file name."""
    boards = {}
    for board, groups in _BOARDS.items():
        chosen = [panel for panel in panels() if panel.group in groups]
        content = json.dumps(_dashboard(board, chosen), indent=1)
        boards[f"rl-cluster-{board}.json"] = f"{content}\n"
    return boards


def _dashboard(board: str, chosen: list[Panel]) -> dict[str, Any]:
    return {
        "uid": f"rl-cluster-{board}",
        "title": f"rl-cluster: {board}",
        "description": "Generated from the table of metrics.",
        "tags": ["rl-cluster"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [_link_to_the_others()],
        "templating": {"list": [_variable("run"), _variable("task", within='run="$run"')]},
        "panels": list(_placed(chosen)),
    }


def _placed(chosen: list[Panel]) -> Iterator[dict[str, Any]]:
    """A row for each group, its panels below it, three beside each other."""
    number, top = 0, 0
    for group, members in groupby(chosen, key=lambda panel: panel.group):
        number += 1
        place = {"x": 0, "y": top, "w": _COLUMNS * _WIDTH, "h": 1}
        yield {"id": number, "gridPos": place, **_row(group)}
        for position, panel in enumerate(members):
            number += 1
            row, column = divmod(position, _COLUMNS)
            place = {"x": column * _WIDTH, "y": top + 1 + row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield {"id": number, "gridPos": place, **_chart(panel)}
        top = place["y"] + _HEIGHT


def _row(group: str) -> dict[str, Any]:
    return {"type": "row", "title": group.capitalize(), "collapsed": False, "panels": []}


def _chart(panel: Panel) -> dict[str, Any]:
    is_alone = len(panel.metrics) == 1
    targets = [
        {
            "refId": "ABCD"[i],
            "datasource": _datasource(),
            "expr": expression(metric),
            "legendFormat": _legend(metric, is_alone),
        }
        for i, metric in enumerate(panel.metrics)
    ]
    defaults = {"unit": panel.unit, "custom": {"lineWidth": 1, "spanNulls": 60_000}}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _datasource(),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull"],
            },
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "targets": targets,
    }


def _legend(metric: Metric, is_alone: bool) -> str:
    if metric.scope == "run":
        return metric.name
    return "{{task}}" if is_alone else f"{{{{task}}}} {metric.name}"


def _variable(label: str, within: str = "") -> dict[str, Any]:
    """A choice above the dashboard: of one run, and of any of its tasks."""
    many = label == "task"
    query = f"label_values({exported(METRICS['env_steps']).name}{{{within}}}, {label})"
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": _datasource(),
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        **({"current": {"text": "All", "value": "$__all"}} if many else {}),
    }


def _datasource() -> dict[str, str]:
    return {"type": "prometheus", "uid": DATASOURCE}


def _link_to_the_others() -> dict[str, Any]:
    return {
        "title": "rl-cluster",
        "type": "dashboards",
        "tags": ["rl-cluster"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for file_name, text in render().items():
        (DIRECTORY / file_name).write_text(text, encoding="utf-8")
