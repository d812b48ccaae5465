"""A control store that says nothing holds nobody up, and is no reason to give anything up."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rl_cluster.cluster import host
from rl_cluster.cluster.gcs import SOON_S, GcsSilent, live_nodes
from rl_cluster.cluster.placement import Places
from rl_cluster.cluster.run_report import RunReport
from rl_cluster.config import ClusterConfig

ACTOR: Any = SimpleNamespace(_actor_id=SimpleNamespace(binary=lambda: b"0" * 16))


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A port that takes connections and never answers: what a stopped process looks like."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        context = SimpleNamespace(gcs_address=address)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        yield


@pytest.mark.usefixtures("frozen")
def test_a_question_ends_when_its_time_is_over() -> None:
    with pytest.raises(GcsSilent, match="says nothing"):
        live_nodes(SOON_S)


@pytest.mark.usefixtures("frozen")
def test_who_may_wait_for_a_node_is_not_given_up_and_only_the_first_in_a_while_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        "rl_cluster.cluster.placement.has_no_place",
        lambda actor, timeout_s: asked.append(actor) or live_nodes(timeout_s),
    )
    places = Places(ClusterConfig(address="auto"))
    assert all(places.waits_for(ACTOR) for _ in range(100))
    assert places.options("rollout:Catch/0")["scheduling_strategy"] == "SPREAD"
    assert len(asked) == 1
    places._ask_again_s = time.monotonic()
    assert places.waits_for(ACTOR) and len(asked) == 2


class _Hub:
    """Notes what Prometheus is told."""

    incidents = 0

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def tell_prometheus(self, addresses: list[str]) -> bool:
        self.told.append(addresses)
        return len(self.told) > 1  # the disk is full at first

    def row(self, *_: object) -> None:
        return

    flush = row


def test_prometheus_hears_of_nodes_that_come_later_and_of_none_that_nobody_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[list[str] | GcsSilent] = [
        GcsSilent("away"), ["a:1"], ["a:1"], GcsSilent("away"), ["a:1"], ["a:1", "b:1"],
    ]  # fmt: skip

    def nodes(timeout_s: float) -> list[Any]:
        answer = answers.pop(0)
        if isinstance(answer, GcsSilent):
            raise answer
        return [SimpleNamespace(metrics_address=address) for address in answer]

    monkeypatch.setattr(host, "live_nodes", nodes)
    monkeypatch.setattr(host, "object_store_bytes", lambda: None)
    monkeypatch.setattr(host, "run_memory_bytes", lambda: 0)
    hub: Any = _Hub()
    report = RunReport("run", None, hub)
    while answers:
        report.write_rows({}, 1.0)
    assert hub.told == [["a:1"], ["a:1"], ["a:1", "b:1"]]
