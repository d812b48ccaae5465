"""The run's handle: what command line and notebooks call to see and steer a live run.

Invariant: a handle holds no part of the run. Dropping it, or the process that made it, changes
nothing in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from rl_cluster.cluster import names, runtime
from rl_cluster.cluster.actors import Actor, Ref, cause_of, read
from rl_cluster.run_directory import read_address
from rl_cluster.telemetry.summary import Summary

_ANSWER_TIMEOUT_S = 60.0


class RunUnreachable(RuntimeError):
    """The run's cluster or supervisor does not answer, or refused; the message says which."""


class RunHandle:
    """A live run."""

    def __init__(self, supervisor: Actor) -> None:
        self._supervisor = supervisor

    def summary(self) -> Summary:
        """State and figures, as in summary.json."""
        summary: Summary = _answer(self._supervisor.summary.remote())
        return summary

    def pause(self, task: str | None = None) -> None:
        """Let a task rest, or every one; RunUnreachable names the tasks where there is no such."""
        _answer(self._supervisor.pause.remote(task))

    def resume(self, task: str | None = None) -> None:
        """Let a paused task go on, or every one."""
        _answer(self._supervisor.resume.remote(task))

    def checkpoint(self, task: str | None = None) -> dict[str, str | None]:
        """Save a task now, or every one; task to its checkpoint's path, None where it failed."""
        paths: dict[str, str | None] = _answer(self._supervisor.checkpoint.remote(task))
        return paths

    def stop(self) -> None:
        """Save everything and end the run."""
        _answer(self._supervisor.stop.remote())


def attach(run_dir: str | Path) -> RunHandle:
    """Connect to the live run in a directory.

    Raises:
      RunDirectoryError: it is not running, or this is no run.
      RunUnreachable: its cluster or its supervisor does not answer.
    """
    place = read_address(Path(run_dir))
    try:
        runtime.join(place.address, place.namespace)
        return RunHandle(ray.get_actor(names.SUPERVISOR, namespace=place.namespace))
    except (ConnectionError, ValueError, RayError) as error:
        raise RunUnreachable(
            f"the run in {run_dir} says that it is at {place.address} (process {place.pid}), but "
            f"it does not answer: {cause_of(error)}"
        ) from error


def _answer(ref: Ref) -> Any:
    try:
        return read(ref, _ANSWER_TIMEOUT_S)
    except RayError as error:
        raise RunUnreachable(cause_of(error)) from error
