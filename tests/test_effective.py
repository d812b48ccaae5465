"""Requested and effective configuration: what the machine decides is a row with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.effective import Difference, EffectiveConfig, resolve
from rl_cluster.machine import Machine

GIGABYTE = 10**9


def machine(cores: int = 8, gpus: tuple[str, ...] = ()) -> Machine:
    return Machine(cores, 16 * GIGABYTE, 8 * GIGABYTE, gpus)


def config(text: str, *overrides: str) -> RunConfig:
    return from_mapping(yaml.safe_load(text), overrides)


def rows(effective: EffectiveConfig) -> dict[str, tuple[Any, Any, str]]:
    return {d.setting: (d.requested, d.effective, d.reason) for d in effective.differences}


def test_everything_that_was_left_to_the_machine_is_a_row_with_its_reason() -> None:
    effective = resolve(config("tasks: [Pong, Breakout]"), machine(cores=8))
    assert rows(effective) == {
        f"tasks.{task}.{setting}": row
        for task in ("Pong", "Breakout")
        for setting, row in {
            "env.name": ("", task, "the task's name"),
            "rollout.env_threads": (0, 4, "8 cores for 2 tasks"),
            "learner.threads": (0, 2, "half of 8 cores for 2 tasks"),
            "learner.device": ("auto", "cpu", "no GPU here"),
        }.items()
    }


def test_the_effective_tree_holds_what_the_rows_say_and_the_rest_as_requested() -> None:
    requested = config("{tasks: [Pong], seed: 7, defaults: {learner: {batch: 64}}}")
    task = resolve(requested, machine(cores=2)).config.tasks["Pong"]
    assert task.env.name == "Pong"
    assert (task.rollout.env_threads, task.learner.threads) == (2, 1)
    assert (task.learner.device, task.learner.batch) == ("cpu", 64)
    assert resolve(requested, machine()).config.seed == 7
    assert requested.tasks["Pong"].learner.device == "auto"


def test_what_was_asked_for_in_full_differs_in_nothing() -> None:
    requested = config("""
        tasks: [left]
        defaults:
          env: {name: Pong}
          rollout: {env_threads: 3}
          learner: {threads: 5, device: cpu}
    """)
    effective = resolve(requested, machine(cores=1))
    assert effective.differences == ()
    assert effective.config == requested


def test_an_effective_configuration_is_settled() -> None:
    once = resolve(config("tasks: [Pong, Breakout]"), machine())
    assert resolve(once.config, machine(cores=64, gpus=("H200",))) == EffectiveConfig(
        once.config, ()
    )


def test_the_actors_of_a_task_share_its_cores() -> None:
    requested = config("{tasks: [Pong, Breakout], defaults: {rollout: {actors: 2}}}")
    tasks = resolve(requested, machine(cores=16)).config.tasks
    assert [task.rollout.env_threads for task in tasks.values()] == [4, 4]
    assert [task.learner.threads for task in tasks.values()] == [4, 4]


def test_fewer_cores_than_tasks_still_give_each_a_thread() -> None:
    requested = config("{tasks: [A, B, C], defaults: {rollout: {actors: 4}}}")
    for task in resolve(requested, machine(cores=2)).config.tasks.values():
        assert (task.rollout.env_threads, task.learner.threads) == (1, 1)


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    effective = resolve(config("tasks: [Pong]"), machine(gpus=("H200",)))
    assert effective.config.tasks["Pong"].learner.device == "cuda"
    assert rows(effective)["tasks.Pong.learner.device"] == ("auto", "cuda", "1 GPU(s) here")


def test_a_gpu_that_is_insisted_on_and_is_not_there_is_refused() -> None:
    requested = config("tasks: [Pong, Breakout]", "tasks.Breakout.learner.device=cuda")
    with pytest.raises(ConfigError, match="tasks.Breakout.learner.device is cuda.*no GPU.*auto"):
        resolve(requested, machine())
    effective = resolve(requested, machine(gpus=("H200",)))
    assert "tasks.Breakout.learner.device" not in rows(effective)


def test_the_file_shows_differences_with_reasons_and_the_whole_tree() -> None:
    effective = resolve(config("tasks: [Pong]"), machine(cores=4))
    document = yaml.safe_load(effective.dump())
    assert [Difference(**row) for row in document["differences"]] == list(effective.differences)
    assert from_mapping(document["config"]) == effective.config
