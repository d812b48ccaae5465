"""Attaching: when a run can be attached to, and that a handle by itself is connected to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from telemetry_samples import run_summary
from test_run_directory import held_by_another_process

import rl_cluster
from rl_cluster.cluster import handle, runtime
from rl_cluster.config_file import dump, from_mapping
from rl_cluster.control import Control
from rl_cluster.run_directory import ClusterAddress, RunDirectory, RunDirectoryError
from rl_cluster.telemetry.summary import write_summary

NIGHT = {"games": 1, "environments": 8, "batch": 32}
CONFIG = from_mapping({"tasks": ["Pong"], "load": {"tiers": {"night": NIGHT}}})
SOON_S = 1.0


def begin(path: Path) -> None:
    """What a session that has a cluster leaves in its directory."""
    (path / "config.yaml").write_text(dump(CONFIG))
    RunDirectory(path).write_address(ClusterAddress("127.0.0.1:1", path.name, ()))


def test_a_run_is_waited_for_until_it_has_reported(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path):
        with pytest.raises(RunDirectoryError, match="is starting"):
            rl_cluster.attach(tmp_path)
        write_summary(tmp_path, run_summary(state="interrupted"))  # of the session before
        os.utime(tmp_path / "summary.json", (1.0, 1.0))

        def start() -> None:
            begin(tmp_path)
            time.sleep(SOON_S)
            write_summary(tmp_path, run_summary(state="running"))

        starting = threading.Thread(target=start)
        starting.start()
        run = rl_cluster.attach(tmp_path, wait_s=60)
        assert run.summary()["state"] == "running"
        starting.join()
        assert {"night", "light", "auto", "custom"} <= set(run.tiers)
        assert run.settings.learner.batch == "learner.batch"


def test_a_run_that_cannot_write_a_summary_can_be_attached_to(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path):
        begin(tmp_path)
        assert list(rl_cluster.attach(tmp_path, wait_s=0.5).tasks) == []


def test_a_run_that_is_over_is_not_waited_for(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(RunDirectoryError, match="is not running now"):
        rl_cluster.attach(tmp_path, wait_s=10_000)


def test_a_run_that_is_over_cannot_be_stopped_and_nobody_who_goes_on_with_it_is(
    tmp_path: Path,
) -> None:
    with held_by_another_process(tmp_path):
        begin(tmp_path)
        run = rl_cluster.attach(tmp_path, wait_s=0.5)
        run.stop()
        assert Control(tmp_path).requested("stop")
    Control(tmp_path).clear("stop")
    with pytest.raises(RunDirectoryError, match="is not running now"):
        run.stop()
    assert not Control(tmp_path).requested("stop")


def test_a_place_without_a_run_is_said_to_hold_none_and_home_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RunDirectoryError, match=f"{tmp_path}/runs/typo holds no run"):
        rl_cluster.attach("~/runs/typo")


def test_holding_a_handle_connects_to_nothing(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path):
        begin(tmp_path)
        code = (
            "import sys, ray, rl_cluster; run = rl_cluster.attach(sys.argv[1]); "
            "print(list(run.tiers)[-1], ray.is_initialized())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True
        )
        assert done.stdout == "custom False\n"


class FakeActor:
    """Answers at once with its name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__ray_call__ = self

    def remote(self, _: object) -> str:
        return f"<{self._name}>"


def connect_to(monkeypatch: pytest.MonkeyPatch, address: str, actors: list[dict[str, str]]) -> None:
    """Let this process be connected to a cluster that has these actors."""

    def get_actor(name: str, namespace: str) -> FakeActor:
        assert {"name": name, "namespace": namespace} in actors
        return FakeActor(name)

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(runtime, "gcs_address", lambda: address)
    monkeypatch.setattr(runtime, "join", lambda cluster: None)
    monkeypatch.setattr(handle, "list_named_actors", lambda all_namespaces: actors)
    monkeypatch.setattr(handle, "read", lambda ref, timeout_s: ref)


def test_a_kernel_on_another_cluster_steers_no_run_of_the_same_name_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [{"name": "supervisor", "namespace": tmp_path.name}]
    connect_to(monkeypatch, "10.0.0.7:6379", there)
    with held_by_another_process(tmp_path):
        begin(tmp_path)
        run = rl_cluster.attach(tmp_path)
        for ask in (run.pause, run.workers, lambda: run.dashboard_url):
            with pytest.raises(handle.RunUnreachable, match=r"10\.0\.0\.7.*ray\.shutdown\(\)"):
                ask()


def test_workers_are_those_of_the_run_and_not_of_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_run = [{"name": name, "namespace": tmp_path.name} for name in ("weights", "supervisor")]
    others = [{"name": "mine", "namespace": "notebook"}]
    connect_to(monkeypatch, "127.0.0.1:1", [*of_the_run, *others])
    with held_by_another_process(tmp_path):
        begin(tmp_path)
        workers = rl_cluster.attach(tmp_path).workers()
    assert workers == {"supervisor": "<supervisor>", "weights": "<weights>"}
