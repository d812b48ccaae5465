"""Requested and effective configuration: what this machine makes of a request, and why.

Invariant: the two differ only by rows that state requested value, effective value and reason; what
the machine cannot do and the request insists on is an error.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl_cluster import config_file
from rl_cluster.config import ConfigError, RunConfig, TaskConfig
from rl_cluster.disk import write_text_atomically
from rl_cluster.machine import Machine
from rl_cluster.supervision.load import Load
from rl_cluster.supervision.tiers import CUSTOM, LoadRule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """One setting that the machine decided."""

    setting: str
    requested: Any
    effective: Any
    reason: str


@dataclass(frozen=True)
class EffectiveConfig:
    """What will run."""

    config: RunConfig
    differences: tuple[Difference, ...]

    def dump(self) -> str:
        """YAML text of `effective.yaml`: differences with their reasons, then the whole tree."""
        differences = [dataclasses.asdict(difference) for difference in self.differences]
        document = {
            "differences": differences,
            "config": config_file.to_mapping(self.config),
        }
        return str(yaml.safe_dump(document, sort_keys=False))


def resolve(config: RunConfig, machine: Machine) -> EffectiveConfig:
    """Settle every `auto` of a configuration for a machine.

    Raises:
      ConfigError: a GPU is asked for and there is none.
    """
    differences: list[Difference] = []
    tasks = {}
    for name, task in config.tasks.items():
        tasks[name], found = _resolve_task(name, task, machine, tasks_at_once(config))
        differences += found
    return EffectiveConfig(dataclasses.replace(config, tasks=tasks), tuple(differences))


def tasks_at_once(config: RunConfig) -> int:
    """Tasks that train at once under the tier that is asked for, memory permitting."""
    load, every = config.load, len(config.tasks)
    if load.tier == CUSTOM:
        return every
    return min(every, LoadRule.of(load, Load(1, 1, 1), every).goal(load.tier).games)


def gather_on_host(effective: EffectiveConfig, reasons: Mapping[str, str]) -> EffectiveConfig:
    """Let no frames lie on the GPU for the tasks that a reason is given for."""
    tasks, differences = dict(effective.config.tasks), list(effective.differences)
    for name, reason in reasons.items():
        learner = tasks[name].learner
        differences.append(
            Difference(f"tasks.{name}.learner.resident_share", learner.resident_share, 0.0, reason)
        )
        host = dataclasses.replace(learner, resident_share=0.0)
        tasks[name] = dataclasses.replace(tasks[name], learner=host)
    config = dataclasses.replace(effective.config, tasks=tasks)
    return EffectiveConfig(config, tuple(differences))


def with_replay(effective: EffectiveConfig, rows: Sequence[Difference]) -> EffectiveConfig:
    """Take in other replay capacities, and whatever else the machine's memory decided."""
    tasks = dict(effective.config.tasks)
    for row in rows:
        _, _, rest = row.setting.partition("tasks.")
        name, _, setting = rest.partition(".")
        if setting == "replay.capacity_transitions":
            replay = tasks[name].replay
            least = min(replay.min_transitions, row.effective - 1)
            smaller = dataclasses.replace(
                replay, capacity_transitions=row.effective, min_transitions=least
            )
            tasks[name] = dataclasses.replace(tasks[name], replay=smaller)
    config = dataclasses.replace(effective.config, tasks=tasks)
    return EffectiveConfig(config, (*effective.differences, *rows))


def read_effective(run_dir: Path) -> RunConfig:
    """What runs, as RUN/effective.yaml says it.

    Raises:
      ConfigError: the file is missing or damaged, or of another version's settings.
    """
    path = run_dir / "effective.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return config_file.from_mapping(document["config"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


class EffectiveFile:
    """RUN/effective.yaml of a live run, written anew whenever what runs has changed."""

    def __init__(self, run_dir: Path, effective: EffectiveConfig) -> None:
        self._path, self._effective = run_dir / "effective.yaml", effective
        self._written: dict[str, TaskConfig] = {}

    def write(self, running: dict[str, TaskConfig], reason: str) -> None:
        """Let it say what runs, and why that is not what was asked for."""
        if running == self._written:
            return
        try:
            text = as_it_runs(self._effective, running, reason).dump()
            write_text_atomically(self._path, text)
        except OSError as error:
            _log.error("%s not written: %s", self._path, error)
        else:
            self._written = running


def as_it_runs(
    effective: EffectiveConfig, running: Mapping[str, TaskConfig], reason: str
) -> EffectiveConfig:
    """What runs now: settings of tasks that the load, or a person, changed have a row each."""
    rows = [
        Difference(f"tasks.{name}.{setting}", old, new, reason)
        for name, task in running.items()
        for setting, old, new in _changed(effective.config.tasks[name], task)
    ]
    config = dataclasses.replace(effective.config, tasks=dict(running))
    return EffectiveConfig(config, (*effective.differences, *rows))


def _changed(old: TaskConfig, new: TaskConfig) -> Iterator[tuple[str, Any, Any]]:
    for group in dataclasses.fields(old):
        before, after = getattr(old, group.name), getattr(new, group.name)
        if before != after:
            for setting in dataclasses.fields(before):
                values = getattr(before, setting.name), getattr(after, setting.name)
                if values[0] != values[1]:
                    yield f"{group.name}.{setting.name}", *values


def _resolve_task(
    name: str, task: TaskConfig, machine: Machine, num_tasks: int
) -> tuple[TaskConfig, list[Difference]]:
    share = max(1, machine.cores // num_tasks)
    cores = f"{machine.cores} cores for {num_tasks} task{'s' if num_tasks > 1 else ''}"
    gpus = f"{len(machine.gpus)} GPU(s) here" if machine.gpus else "no GPU here"
    if task.learner.device == "cuda" and not machine.gpus:
        raise ConfigError(
            f"tasks.{name}.learner.device is cuda, but this machine has no GPU with a working "
            "driver: set it to auto or cpu, or run where there is one"
        )
    automatic = {
        ("env", "name", ""): (name, "the task's name"),
        ("rollout", "env_threads", 0): (max(1, share // task.rollout.actors), cores),
        ("learner", "threads", 0): (max(1, share // 2), f"half of {cores}"),
        ("learner", "device", "auto"): ("cuda" if machine.gpus else "cpu", gpus),
    }
    differences = []
    for (group, field, placeholder), (value, reason) in automatic.items():
        part = getattr(task, group)
        if getattr(part, field) == placeholder:
            task = dataclasses.replace(task, **{group: dataclasses.replace(part, **{field: value})})
            differences.append(
                Difference(f"tasks.{name}.{group}.{field}", placeholder, value, reason)
            )
    return task, differences
