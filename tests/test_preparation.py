"""Where a task's frames lie is settled before anything starts, and said with its reason."""

from __future__ import annotations

import pytest

from rl_cluster import preparation
from rl_cluster.config_file import from_mapping
from rl_cluster.effective import Difference
from rl_cluster.machine import Machine
from rl_cluster.resident import resident_bytes

GIGABYTE = 10**9
CATCH = {"entry": "envs.catch:make", "name": "Catch"}
VECTORS = {"entry": "envs.classic:make", "name": "CartPole-v1"}


def prepared(
    monkeypatch: pytest.MonkeyPatch,
    gpu_memory_bytes: int,
    tasks: tuple[str, ...] = ("one",),
    env: dict[str, str] | None = None,
    **learner: object,
) -> preparation.PreparedRun:
    machine = Machine(8, 99 * GIGABYTE, 99 * GIGABYTE, ("H200",), gpu_memory_bytes)
    monkeypatch.setattr(preparation, "detect", lambda: machine)
    defaults = {"env": env or CATCH, "learner": {"device": "cuda", **learner}}
    return preparation.prepare(from_mapping({"tasks": list(tasks), "defaults": defaults}))


def row(run: preparation.PreparedRun, task: str = "one") -> Difference | None:
    setting = f"tasks.{task}.learner.resident_share"
    return next((d for d in run.effective.differences if d.setting == setting), None)


def test_frames_that_fit_into_their_share_lie_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(monkeypatch, 4 * GIGABYTE, resident_share=0.5)
    assert row(run) is None
    task = run.effective.config.tasks["one"]
    assert task.learner.resident_share == 0.5
    assert resident_bytes(task, run.specs["one"]) < 2 * GIGABYTE


def test_frames_that_do_not_fit_stay_on_the_host_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = prepared(monkeypatch, 1 * GIGABYTE, resident_share=0.5)
    found = row(run)
    assert found is not None
    assert (found.requested, found.effective) == (0.5, 0.0)
    assert "more than 0.5 of the 1.00 GB" in found.reason
    assert run.effective.config.tasks["one"].learner.resident_share == 0.0


def test_tasks_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(monkeypatch, 2 * GIGABYTE, ("one", "two"), resident_share=0.8)
    found = row(run, "two")
    assert found is not None
    assert "of the 1.00 GB of GPU memory that are this task's" in found.reason


def test_vectors_are_gathered_where_they_can_be_searched_for_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = row(prepared(monkeypatch, 99 * GIGABYTE, env=VECTORS))
    assert found is not None
    assert "float32 are searched for NaN on the host" in found.reason


@pytest.mark.parametrize("learner", [{"resident_share": 0}, {"device": "cpu"}])
def test_what_asks_for_the_host_is_no_difference(
    monkeypatch: pytest.MonkeyPatch, learner: dict[str, object]
) -> None:
    assert row(prepared(monkeypatch, 1, **learner)) is None
