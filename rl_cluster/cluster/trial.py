"""A short run whose only purpose is to be measured.

Invariant: it is a real run, in a directory of its own that is gone when it is over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.cluster import training
from rl_cluster.config import RunConfig
from rl_cluster.control import Control
from rl_cluster.forecast import ForecastError, Rate, read_rates
from rl_cluster.preparation import PreparedRun, prepare
from rl_cluster.run_directory import RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.incidents import read_incidents
from rl_cluster.telemetry.summary import Summary, failures_of


@dataclass(frozen=True)
class Measured:
    """What a trial has shown."""

    rates: Mapping[str, Rate]
    load_changes: Sequence[str]
    """Why the run did less, or more, than it began with; empty: it did not."""


def measure(
    trial: RunConfig,
    seconds: float,
    stop: StopFlag,
    announce: Callable[[PreparedRun, Path], None],
    show: Callable[[Summary], None],
) -> Measured | None:
    """Train, and return how fast each task did; None where `stop` was set first.

    Args:
      trial: as `as_trial` made it.
      seconds: from when all tasks that are at work learn.
      announce: receives what it became on this machine, and where it is.
      show: receives each new summary.

    Raises:
      ConfigError, AdmissionError: it cannot be on this machine.
      ForecastError: the run or a task of it failed, or no task began to learn in the time given.
    """
    config = training.with_cluster_found(trial)
    prepared = prepare(config)
    with tempfile.TemporaryDirectory(prefix="rl-cluster-forecast-") as path:
        directory = RunDirectory(Path(path))
        directory.take(resume=False)
        announce(prepared, directory.path)
        training.start(config, prepared, directory)
        look = _Look(directory.path, seconds, show)
        try:
            look.failures = failures_of(training.watch(directory, stop, look))
        except training.Interrupted:
            pass  # told apart below: by whom
        except training.RunFailed as error:
            raise ForecastError(f"the run that was to be measured failed: {error}") from error
        if stop:
            return None
        rates = read_rates(directory.path, look.learning_since_s, look.failures)
        incidents = read_incidents(directory.path)
        changes = [each.cause for each in incidents if each.kind == "load_changed"]
        return Measured(rates, changes)


class _Look:
    """Shows each summary, and ends the run once it has learned for long enough."""

    def __init__(self, run_dir: Path, seconds: float, show: Callable[[Summary], None]) -> None:
        self._control, self._seconds, self._show = Control(run_dir), seconds, show
        self._began_s: float | None = None
        self.learning_since_s: float | None = None
        """When all tasks at work learned, unix s; None: not yet."""
        self.failures = ""
        """Why tasks were parked, by the newest summary."""

    def __call__(self, summary: Summary) -> None:
        self._show(summary)
        self.failures = failures_of(summary)
        at_work = [task for task in summary["tasks"].values() if task["state"] != "queued"]
        if self._began_s is None and at_work and all(task["learner_updates"] for task in at_work):
            self._began_s, self.learning_since_s = summary["wall_s"], summary["updated_at"]
        measured = self._began_s is not None and summary["wall_s"] - self._began_s >= self._seconds
        if measured or self.failures:
            self._control.request("stop")
