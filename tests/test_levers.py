"""Levers: which settings may change in a running run, and that a change is whole or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster import config_file, levers
from rl_cluster.config import ConfigError, TaskConfig
from rl_cluster.levers import LIVE, Change

RUN = config_file.from_mapping(
    {
        "tasks": {
            "Pong": {
                "agent": {"conv_channels": [4, 4]},
                "env": {"settings": {"options": {"a": 1}}},
            },
            "Breakout": {"learner": {"batch": 64, "micro_batch": 16}},
        },
        "load": {"tiers": {"own": {"games": 1, "environments": 2, "batch": 3}}},
        "seed": 7,
    }
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "learner.learning_rate": st.floats(1e-9, 1.0),
    "learner.publish_period": st.integers(1, 10_000),
    "learner.batch": st.integers(1, 10_000),
    "replay.samples_per_insert": st.floats(1e-3, 1e3),
    "rollout.epsilon_base": st.floats(0, 1),
    "evaluation.period_s": st.floats(0.1, 1e6),
    "checkpoint.period_s": st.floats(0.1, 1e6),
    "stream.silence_s": st.floats(0.1, 1e6),
    "stream.policy_period_s": st.floats(0.1, 1e6),
    "stream.gate_margin": st.floats(0, 10),
}


def flat(task: TaskConfig) -> dict[str, Any]:
    groups = dataclasses.asdict(task)
    priority = groups.pop("priority")
    leaves = {f"{group}.{name}": v for group, tree in groups.items() for name, v in tree.items()}
    return {**leaves, "priority": priority}


changes = st.sampled_from(sorted(LIVE)).flatmap(
    lambda setting: st.builds(
        Change, st.sampled_from([None, "Pong", "Breakout"]), st.just(setting), GOOD[setting]
    )
)


@given(changes)
def test_a_change_changes_the_setting_named_in_the_tasks_meant_and_nothing_else(
    change: Change,
) -> None:
    changed = levers.apply_change(RUN, change)
    for name, task in RUN.tasks.items():
        wanted = flat(task)
        if change.task in (None, name):
            wanted[change.setting] = change.value
        assert flat(changed.tasks[name]) == wanted
    assert dataclasses.replace(changed, tasks=RUN.tasks) == RUN
    assert config_file.from_mapping(config_file.to_mapping(changed)) == changed


@given(changes)
def test_one_task_s_configuration_changes_as_the_run_s_does(change: Change) -> None:
    for name, task in RUN.tasks.items():
        found = levers.apply(task, change.setting, change.value)
        wanted = levers.apply_change(RUN, dataclasses.replace(change, task=name))
        assert found == wanted.tasks[name]


def test_every_live_setting_is_tried_here_and_is_a_setting() -> None:
    assert GOOD.keys() == LIVE.keys()
    assert LIVE.keys() <= flat(TaskConfig()).keys()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learner.learning_rate", 0),
        ("learner.learning_rate", -1e-4),
        ("learner.learning_rate", float("nan")),
        ("learner.learning_rate", float("inf")),
        ("learner.learning_rate", "fast"),
        ("learner.learning_rate", None),
        ("learner.batch", 0),
        ("learner.batch", 32.5),
        ("learner.batch", True),
        ("learner.publish_period", 0),
        ("replay.samples_per_insert", 0),
        ("replay.samples_per_insert", [8]),
        ("rollout.epsilon_base", 1.5),
        ("rollout.epsilon_base", {"a": 1}),
        ("evaluation.period_s", 0),
        ("checkpoint.period_s", -1),
    ],
)
def test_a_value_that_the_configuration_forbids_is_refused_by_name(
    setting: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\.Pong\.{setting}.*") as refusal:
        levers.apply_change(RUN, Change("Pong", setting, value))
    assert repr(value) in str(refusal.value) or isinstance(value, dict | list)
    with pytest.raises(ConfigError, match=rf"^{setting}"):
        levers.apply(RUN.tasks["Pong"], setting, value)


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("learner.lerning_rate", "learner.learning_rate"),
        ("learning_rate", "learner.learning_rate"),
        ("batch", "learner.batch"),
        ("replay.batch", "learner.batch"),
        ("epsilon", "rollout.epsilon_base"),
        ("samples_per_inserts", "replay.samples_per_insert"),
        ("learner.samples_per_insert", "replay.samples_per_insert"),
        ("publication_period", "learner.publish_period"),
    ],
)
def test_an_unknown_setting_names_the_nearest_live_one(setting: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{setting}': did you mean '{meant}'"):
        levers.apply_change(RUN, Change(None, setting, 1))


@pytest.mark.parametrize("setting", ["", "x", ".", "zzz.yyy", "learner.", ".batch.", "tasks.Pong"])
def test_a_setting_like_no_other_is_refused_with_the_live_ones(setting: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting.*learner.batch"):
        levers.apply_change(RUN, Change(None, setting, 1))


def test_a_setting_that_is_known_but_not_live_needs_a_restart() -> None:
    for setting in flat(TaskConfig()).keys() - LIVE.keys():
        with pytest.raises(ConfigError, match=f"{setting} cannot change.*stop the run.*--resume"):
            levers.apply_change(RUN, Change("Pong", setting, 1))
    with pytest.raises(ConfigError, match="learner cannot change"):
        levers.apply_change(RUN, Change("Pong", "learner", {}))


def test_an_unknown_task_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no task 'Pnog' in this run: did you mean 'Pong'"):
        levers.apply_change(RUN, Change("Pnog", "learner.batch", 1))
    with pytest.raises(ConfigError, match="no task 'x'.*known here: Pong, Breakout"):
        levers.apply_change(RUN, Change("x", "learner.batch", 1))


def test_values_as_a_command_line_gives_them_are_taken() -> None:
    """YAML 1.1 reads 1e-4 as text, as `--set` finds it too."""
    changed = levers.apply_change(RUN, Change(None, "learner.learning_rate", "1e-5"))
    assert {task.learner.learning_rate for task in changed.tasks.values()} == {1e-5}
