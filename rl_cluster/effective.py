"""Requested and effective configuration: what this machine makes of a request, and why.

Invariant: the two differ only by rows that state requested value, effective value and reason; what
the machine cannot do and the request insists on is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rl_cluster import config_file
from rl_cluster.config import ConfigError, RunConfig, TaskConfig
from rl_cluster.machine import Machine


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
        tasks[name], found = _resolve_task(name, task, machine, len(config.tasks))
        differences += found
    return EffectiveConfig(dataclasses.replace(config, tasks=tasks), tuple(differences))


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
