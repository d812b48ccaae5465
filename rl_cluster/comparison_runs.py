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
from rl_cluster.evaluation import Evaluation, read_evaluations
from rl_cluster.sweep_plan import is_sweep, runs_of
from rl_cluster.telemetry.summary import read_summary


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

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        runs = [
            {"run": str(run.directory), "seed": run.seed, "state": run.state} for run in self.runs
        ]
        return {"group": self.name, "settings": dict(self.settings), "runs": runs}


def read_groups(paths: Iterable[Path]) -> list[Group]:
    """Return the groups that runs and sweeps fall into, in the order in which they were named.

    Raises:
      ComparisonError: a path is neither, a run has no evaluation, or tasks differ.
    """
    named = [path.resolve() for path in paths]
    directories = [run for path in named for run in (runs_of(path) if is_sweep(path) else [path])]
    if not directories:
        raise ComparisonError("no run to compare: name run directories or sweeps")
    runs = [_read(directory) for directory in dict.fromkeys(directories)]
    _check_same_tasks(runs)
    members: dict[str, list[ComparedRun]] = {}
    for run in runs:
        members.setdefault(_key(run), []).append(run)
    return _named(list(members.values()))


def _read(directory: Path) -> ComparedRun:
    if not (directory / "config.yaml").exists():
        raise ComparisonError(
            f"{directory} is no run (it has no config.yaml) and no sweep (no sweep.yaml)"
        )
    try:
        config = config_file.load(directory / "config.yaml")
        evaluations = {
            task: read_evaluations(directory / task / "evaluations.jsonl") for task in config.tasks
        }
        state = _state(directory)
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
    return ComparedRun(directory, config.seed, state, settings, evaluations)


def _state(directory: Path) -> str:
    try:
        return read_summary(directory)["state"]
    except FileNotFoundError:
        return "unknown"


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


def _named(members: Sequence[Sequence[ComparedRun]]) -> list[Group]:
    paths = [
        runs[0].directory.parent if is_sweep(runs[0].directory.parent) else runs[0].directory
        for runs in members
    ]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    keys = {key for runs in members for key in runs[0].settings}
    differing = sorted(
        key for key in keys if len({repr(runs[0].settings.get(key)) for runs in members}) > 1
    )
    return [
        Group(name, runs, {key: runs[0].settings.get(key) for key in differing})
        for name, runs in zip(names, members, strict=True)
    ]
