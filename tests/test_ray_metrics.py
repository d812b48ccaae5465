"""What Prometheus reads of a run: rows go through the recorder that Ray's own node agent keeps.

Ray's gauges and counters need a cluster to carry what is set to that agent; here they hand it over
directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

from rl_cluster.cluster import ray_metrics
from rl_cluster.cluster.ray_metrics import RayMetricsSink
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.prometheus import exported
from rl_cluster.telemetry.writers import Row

RECORDER = OpenTelemetryMetricRecorder()


class DirectGauge:
    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._labels = name, set(labels)
        RECORDER.register_gauge_metric(name, text)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._labels
        RECORDER.set_metric_value(self._name, tags, value)


class DirectCounter:
    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name = name
        RECORDER.register_counter_metric(name, text)

    def _record(self, value: float, tags: dict[str, str]) -> None:
        RECORDER.set_metric_value(self._name, tags, value)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RayMetricsSink:
    """Of a run with the test's own name, since the recorder keeps what it has."""
    monkeypatch.setattr(ray_metrics, "Gauge", DirectGauge)
    monkeypatch.setattr(ray_metrics, "Counter", DirectCounter)
    return RayMetricsSink(request.node.name)


def write(sink: RayMetricsSink, values: Mapping[str, float | None], task: str | None) -> None:
    sink.write(Row(0.0, 0.0, task, None if task is None else 1, values))


def found(run: str) -> dict[tuple[str, str], float]:
    """What a scrape finds of a run, by name and task."""
    families: Any = text_string_to_metric_families(generate_latest().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, s.labels["task"]): s.value for s in samples if s.labels.get("run") == run}


def test_every_metric_is_found_under_its_name(
    sink: RayMetricsSink, request: pytest.FixtureRequest
) -> None:
    scopes: dict[str | None, str] = {"Pong": "task", None: "run"}
    for task, scope in scopes.items():
        write(sink, {n: 0.0 for n, metric in METRICS.items() if metric.scope == scope}, task)
    there = found(request.node.name)
    expected = {
        (exported(metric).name, "Pong" if metric.scope == "task" else "")
        for metric in METRICS.values()
    }
    assert there.keys() == expected, "what never happened is 0, not missing"


def test_a_total_that_a_restart_threw_back_stands_still_until_it_is_passed(
    sink: RayMetricsSink, request: pytest.FixtureRequest
) -> None:
    name = exported(METRICS["learner_updates"]).name
    for told, expected in ((100.0, 100.0), (250.0, 250.0), (200.0, 250.0), (260.0, 260.0)):
        write(sink, {"learner_updates": told}, "Pong")
        assert found(request.node.name)[name, "Pong"] == expected


def test_tasks_count_for_themselves_and_times_are_in_seconds(
    sink: RayMetricsSink, request: pytest.FixtureRequest
) -> None:
    write(sink, {"env_steps": 7.0, "publish_ms": 30.0}, "Pong")
    write(sink, {"env_steps": 5.0, "publish_ms": None, "loss": float("nan")}, "Catch")
    assert found(request.node.name) == {
        ("ray_rl_cluster_env_steps_total", "Pong"): 7.0,
        ("ray_rl_cluster_env_steps_total", "Catch"): 5.0,
        ("ray_rl_cluster_publish_seconds", "Pong"): pytest.approx(0.03),
    }
