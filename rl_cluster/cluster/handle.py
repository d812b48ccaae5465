"""The run's handle: what command line and notebooks call to see and steer a live run.

Invariant: a handle holds no part of the run. Dropping it, or the process that made it, changes
nothing in training.
"""

from __future__ import annotations

from pathlib import Path

import ray
from ray.actor import ActorHandle

from rl_cluster.cluster import names, runtime
from rl_cluster.run_directory import read_address
from rl_cluster.telemetry.summary import Summary

_ANSWER_TIMEOUT_S = 30.0


class RunHandle:
    """A live run."""

    def __init__(self, supervisor: ActorHandle) -> None:
        self._supervisor = supervisor

    def summary(self) -> Summary:
        """State and figures, as in summary.json."""
        summary: Summary = ray.get(self._supervisor.summary.remote(), timeout=_ANSWER_TIMEOUT_S)
        return summary

    def pause(self, task: str | None = None) -> None:
        """Let a task rest, or every one; ValueError names the tasks where it has another name."""
        ray.get(self._supervisor.pause.remote(task), timeout=_ANSWER_TIMEOUT_S)

    def resume(self, task: str | None = None) -> None:
        """Let a paused task go on, or every one."""
        ray.get(self._supervisor.resume.remote(task), timeout=_ANSWER_TIMEOUT_S)

    def stop(self) -> None:
        """Save everything and end the run."""
        ray.get(self._supervisor.stop.remote(), timeout=_ANSWER_TIMEOUT_S)


def attach(run_dir: str | Path) -> RunHandle:
    """Connect to the live run in a directory.

    Raises:
      RunDirectoryError: it is not running, or this is no run.
      ConnectionError: its cluster cannot be reached.
    """
    place = read_address(Path(run_dir))
    runtime.join(place.address, place.namespace)
    return RunHandle(ray.get_actor(names.SUPERVISOR, namespace=place.namespace))
