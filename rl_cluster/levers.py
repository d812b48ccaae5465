"""Levers: the settings that a person may change while a run goes on, and the change itself.

Invariant: a change is whole or refused. What comes out is a configuration that could have been read
from a file; every setting but the one that was named is as it was. Nothing here acts: who holds the
changed part is told by its owner, between two steps.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from rl_cluster import config_file
from rl_cluster.config import ConfigError, RunConfig, TaskConfig

_ONLY = "task"

Worker = Literal["learner", "replay", "rollout", "evaluator", "reader", "courier"]

LIVE: Mapping[str, Worker] = MappingProxyType(
    {
        "learner.learning_rate": "learner",
        "learner.publish_period": "learner",
        "learner.batch": "replay",
        "replay.samples_per_insert": "replay",
        "rollout.epsilon_base": "rollout",
        "evaluation.period_s": "evaluator",
        "checkpoint.period_s": "learner",
        "stream.silence_s": "reader",
        "stream.policy_period_s": "courier",
        "stream.gate_margin": "courier",
    }
)
"""Setting of a task to the worker that takes it between two steps.

A batch is what the replay draws; a learner takes any."""


@dataclass(frozen=True)
class Change:
    """What a person asks for."""

    task: str | None
    """None: every task."""
    setting: str
    """Group and name, one of `LIVE`."""
    value: Any
    """As YAML would give it."""


def apply_change(config: RunConfig, change: Change) -> RunConfig:
    """The run's configuration with one setting changed in one task, or in all.

    Raises:
      ConfigError: no such task or setting, one that is not live, or a value that it may not have.
    """
    if change.task is not None and change.task not in config.tasks:
        near = _nearest(change.task, {name: name for name in config.tasks})
        raise ConfigError(f"no task {change.task!r} in this run: {near}")
    chosen = [change.task] if change.task is not None else list(config.tasks)
    tree = config_file.to_mapping(config)
    for name in chosen:
        _set(tree["tasks"][name], change.setting, change.value)
    return config_file.from_mapping(tree)


def apply(config: TaskConfig, setting: str, value: Any) -> TaskConfig:
    """One task's configuration with one setting changed.

    Raises:
      ConfigError: as `apply_change` does, without the task's name.
    """
    change = Change(_ONLY, setting, value)
    try:
        return apply_change(RunConfig({_ONLY: config}), change).tasks[_ONLY]
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"tasks.{_ONLY}.", "")) from error


def apply_all(config: TaskConfig, settings: Mapping[str, Any]) -> TaskConfig:
    """One task's configuration with several settings changed, in their order."""
    for setting, value in settings.items():
        config = apply(config, setting, value)
    return config


def _set(task: dict[str, Any], setting: str, value: Any) -> None:
    group, _, name = setting.partition(".")
    if setting in LIVE:
        task[group][name] = value
        return
    known = {key: list(value) for key, value in task.items() if isinstance(value, dict)}
    if setting in task or name in known.get(group, []):
        raise ConfigError(
            f"{setting} cannot change while the run goes on: set it in the configuration, stop the "
            f"run and train it again with --resume. Live: {', '.join(LIVE)}"
        )
    names = {live: live for live in LIVE} | {live.partition(".")[2]: live for live in LIVE}
    raise ConfigError(f"unknown setting {setting!r}: {_nearest(setting, names)}")


def _nearest(name: str, known: Mapping[str, str]) -> str:
    """The end of an error message: which of the names was meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {known[close[0]]!r}?"
    return f"known here: {', '.join(dict.fromkeys(known.values()))}"
