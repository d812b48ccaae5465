"""Every notebook from top to bottom, and a kernel that dies while it is attached, on real runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from job_cluster import JobCluster
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from live_run import EXPERIMENTS, ROOT, LiveRun
from render_notebooks import WANT_A_CLUSTER, execute, notebooks, runs_below
from test_run_levers import SETTINGS, wait_for_metric, wait_for_updates

from rl_cluster.telemetry.incidents import read_incidents
from rl_cluster.telemetry.summary import read_summary

pytestmark = pytest.mark.long

ATTACHED = """
import rl_cluster
run = rl_cluster.attach({run!r}, wait_s=60)
widget = run.widget()
chart = run.curves().live(period_s=1)

def controls(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from controls(child)

by_name = {{getattr(each, "description", ""): each for each in controls(widget)}}
"""
BY_WIDGET = """
by_name["tier"].value = "small"
by_name["learner.learning_rate"].value = 5e-5
by_name["Apply"].click()
"""
REFUSED = """
by_name["learner.learning_rate"].value = -1.0
by_name["Apply"].click()
print([each.value for each in controls(widget) if "refused" in str(getattr(each, "value", ""))])
"""


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
@pytest.mark.timeout(900)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    with cluster_for(path, tmp_path / "token") as environment:
        notebook = execute(path, tmp_path, environment)
    states = [read_summary(run_dir)["state"] for run_dir in runs_below(tmp_path)]
    assert states and set(states) <= {"completed", "interrupted"}, "it ends what it starts"
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in said)


@contextmanager
def cluster_for(path: Path, token: Path) -> Iterator[dict[str, str]]:
    """What a notebook finds in its environment: one wants a cluster that is there."""
    if path.stem not in WANT_A_CLUSTER:
        yield {}
        return
    with JobCluster(token, nodes=2) as cluster:
        yield cluster.client_environment


@contextmanager
def kernel(directory: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A Jupyter kernel, as a person's browser talks to it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(directory), env=os.environ | {"PYTHONPATH": str(ROOT)})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def say(client: BlockingKernelClient, code: str) -> str:
    """Run code in the kernel and return what it printed; fail where it raised."""
    printed: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        printed.append(message["content"].get("text", ""))

    reply = client.execute_interactive(code, timeout=120, output_hook=hear)["content"]
    assert reply["status"] == "ok", "\n".join(reply["traceback"])
    return "".join(printed)


def offered(client: BlockingKernelClient, typed: str) -> list[str]:
    """What TAB offers behind what was typed."""
    matches: list[str] = client.complete(typed, reply=True, timeout=60)["content"]["matches"]
    return [match.removeprefix(typed) for match in matches]


def names_are_offered(client: BlockingKernelClient) -> None:
    levers = {"tier", "pause", "change", "widget", "curves", "frame", "videos", "blocks"}
    assert levers <= set(offered(client, "run."))
    assert offered(client, "run.tasks.") == ["Catch"]
    assert {"small", "both", "auto", "custom"} <= set(offered(client, "run.tiers."))
    assert {"batch", "learning_rate"} <= set(offered(client, "run.settings.learner."))


def the_panel_moves_levers(run: LiveRun, client: BlockingKernelClient) -> None:
    say(client, BY_WIDGET)
    wait_for_metric(run, "learning_rate", 5e-5)
    run.wait_for(lambda s: s["tier"] == {"requested": "small", "effective": "small"}, 60)
    assert "learning_rate is -1" in say(client, REFUSED)
    kinds = [incident.kind for incident in read_incidents(run.run_dir)]
    assert {"setting_changed", "tier_requested"} <= set(kinds)


def the_chart_is_drawn_anew(client: BlockingKernelClient) -> None:
    say(client, "first = chart.value")
    deadline_s = time.monotonic() + 60
    while say(client, "print(chart.value == first)").strip() == "True":
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


@pytest.mark.timeout(480)
def test_a_kernel_steers_a_run_and_its_death_changes_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with LiveRun(EXPERIMENTS / "catch.yaml", run_dir, *SETTINGS) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > 20, 90)
        with kernel(tmp_path) as (manager, client):
            say(client, ATTACHED.format(run=str(run_dir)))
            names_are_offered(client)
            the_panel_moves_levers(run, client)
            the_chart_is_drawn_anew(client)
            before = len(read_incidents(run_dir))
            os.kill(manager.provisioner.pid, signal.SIGKILL)
            wait_for_updates(run, 20)
            assert run.summary()["tier"]["requested"] == "small"
            assert [incident.kind for incident in read_incidents(run_dir)[before:]] == []
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
