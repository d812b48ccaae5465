"""When a raylet is given up: after 10 s without an answer, once, never for one question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_cluster.cluster.node_guard import NodeGuard
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.config_file import from_mapping
from rl_cluster.control import Control
from rl_cluster.telemetry.incidents import read_incidents


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path)


@pytest.fixture
def guard(control: Control, tmp_path: Path) -> Iterator[NodeGuard]:
    config = from_mapping({"tasks": ["Catch"], "telemetry": {"tensorboard": False}})
    hub = TelemetryHub("run", tmp_path, config)
    yield NodeGuard(control, hub)
    hub.close()


def test_one_that_falls_silent_is_given_up_once(
    guard: NodeGuard, control: Control, tmp_path: Path
) -> None:
    guard.look(True, 0.0)
    for now_s in range(5, 15):
        guard.look(False, float(now_s))
        assert not control.requested("recycled")
    for now_s in range(15, 60):  # the keeper may put the new cluster off
        guard.look(False, float(now_s))
        assert control.requested("recycled")
    (incident,) = read_incidents(tmp_path)
    assert (incident.kind, incident.worker) == ("cluster_lost", "raylet")
    assert "answered nothing for 10 s" in incident.cause


def test_every_answer_begins_the_time_anew(guard: NodeGuard, control: Control) -> None:
    for now_s in range(0, 100):
        guard.look(now_s % 10 == 0, float(now_s))
    assert not control.requested("recycled")


def test_one_that_never_answered_is_not_missed(guard: NodeGuard, control: Control) -> None:
    for now_s in range(0, 100):
        guard.look(False, float(now_s))
    assert not control.requested("recycled")
