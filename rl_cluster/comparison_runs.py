"""The runs that a comparison is made of: found, read, grouped, or refused with the reason.

Invariant: every run that is returned has an evaluation of the same tasks, and the runs of one group
differ in nothing but their seed, or are one sweep's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_cluster import config_file
from rl_cluster.config import ConfigError
from rl_cluster.evaluation import Evaluation, read_evaluations
from rl_cluster.sweep_plan import is_sweep, runs_of
from rl_cluster.telemetry.incidents import read_incidents
from rl_cluster.telemetry.summary import read_summary

_CHANGES = (
    "setting_changed",
    "tier_requested",
    "load_changed",
    "task_added",
    "task_removed",
    "policy_rolled_back",
)
"""Kinds of incidents after which a run is not what its configuration says."""


class ComparisonError(ValueError):
    """What was named cannot be compared; the message says what and why."""


@dataclass(frozen=True)
class ComparedRun:
    """One run."""

    directory: Path
    seed: int
    state: str
    """As summary.json has it; `unknown` where there is none."""
    settings: Mapping[str, Any]
    """Dotted name to value of every setting but the seed."""
    evaluations: Mapping[str, Sequence[Evaluation]]
    """Of each task, at least one, oldest first."""
    failed: Sequence[str]
    """Tasks that are parked; the run may be completed without them."""
    changes: Sequence[str]
    """Kinds of incidents by which it was changed while it trained, each once."""

    @property
    def tasks(self) -> frozenset[str]:
        """Names of its tasks."""
        return frozenset(self.evaluations)


@dataclass(frozen=True)
class Group:
    """Runs that are repetitions of each other."""

    name: str
    runs: Sequence[ComparedRun]
    settings: Mapping[str, Any]
    """Those that the groups do not have in common."""
    not_begun: Sequence[Path] = ()
    """Runs of the sweep whose turn has not come."""

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        runs = [
            {"run": str(run.directory), "seed": run.seed, "state": run.state} for run in self.runs
        ]
        return {"group": self.name, "settings": dict(self.settings), "runs": runs}


def read_groups(paths: Iterable[Path]) -> list[Group]:
    """Return the groups that runs and sweeps fall into, in the order in which they were named.

    Raises:
      ComparisonError: a path is neither, a run has no evaluation, tasks differ, or a file of theirs
        is damaged.
    """
    named = {path.resolve(): _runs_of(path.resolve()) for path in paths}
    if not named:
        raise ComparisonError("no run to compare: name run directories or sweeps")
    waiting = [run for path in named if is_sweep(path) for run in named[path] if not _begun(run)]
    directories = dict.fromkeys(run for runs in named.values() for run in runs)
    runs = [_read(directory) for directory in directories if directory not in waiting]
    _check_same_tasks(runs)
    members: dict[str, list[ComparedRun]] = {}
    for run in runs:
        members.setdefault(_key(run), []).append(run)
    return _named(list(members.values()), waiting)


def _runs_of(path: Path) -> list[Path]:
    """The runs that a name stands for."""
    if not is_sweep(path):
        return [path]
    try:
        runs = runs_of(path)
    except ConfigError as error:
        raise ComparisonError(f"{error}; mend it, or name its runs one by one") from error
    if not any(map(_begun, runs)):
        raise ComparisonError(f"no run of the sweep {path} has begun yet: compare it later")
    return runs


def _begun(run: Path) -> bool:
    return (run / "config.yaml").exists()


def _read(directory: Path) -> ComparedRun:
    if not _begun(directory):
        raise ComparisonError(
            f"{directory} is no run (it has no config.yaml) and no sweep (no sweep.yaml)"
        )
    try:
        config = config_file.load(directory / "config.yaml")
        evaluations = {
            task: read_evaluations(directory / task / "evaluations.jsonl") for task in config.tasks
        }
        state, failed = _state(directory)
        kinds = {incident.kind for incident in read_incidents(directory)}
    except ValueError as error:  # of every kind: a damaged configuration, line or summary
        raise ComparisonError(f"{directory} cannot be read: {error}") from error
    for task, found in evaluations.items():
        if not found:
            raise ComparisonError(
                f"{directory} has no evaluation of {task} yet: let it train on, or name the runs "
                "that are to be compared without it"
            )
    settings = config_file.flat(config_file.to_mapping(config))
    del settings["seed"]
    return ComparedRun(
        directory,
        config.seed,
        state,
        settings,
        evaluations,
        [task for task in evaluations if task in failed],
        [kind for kind in _CHANGES if kind in kinds],
    )


def _state(directory: Path) -> tuple[str, set[str]]:
    """State of a run, and its tasks that are failed."""
    try:
        summary = read_summary(directory)
    except FileNotFoundError:
        return "unknown", set()
    return summary["state"], {t for t, it in summary["tasks"].items() if it["state"] == "failed"}


def _check_same_tasks(runs: Sequence[ComparedRun]) -> None:
    first = runs[0]
    for run in runs:
        if run.tasks != first.tasks:
            raise ComparisonError(
                f"different tasks: {first.directory} has {', '.join(sorted(first.tasks))}, "
                f"{run.directory} has {', '.join(sorted(run.tasks))}: only runs of the same tasks "
                "compare"
            )


def _key(run: ComparedRun) -> str:
    sweep = run.directory.parent
    return str(sweep) if is_sweep(sweep) else repr(run.settings)


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same everywhere, sorted."""
    every = list(settings)
    keys = {key for each in every for key in each}
    return sorted(key for key in keys if len({repr(each.get(key)) for each in every}) > 1)


def _named(members: Sequence[Sequence[ComparedRun]], waiting: Sequence[Path]) -> list[Group]:
    paths = [
        runs[0].directory.parent if is_sweep(runs[0].directory.parent) else runs[0].directory
        for runs in members
    ]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    keys = differing(runs[0].settings for runs in members)
    return [
        Group(
            name,
            runs,
            {key: runs[0].settings.get(key) for key in keys},
            [run for run in waiting if run.parent == path],
        )
        for name, path, runs in zip(names, paths, members, strict=True)
    ]
