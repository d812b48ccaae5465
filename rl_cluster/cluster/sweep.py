"""A sweep: runs that differ in nothing but their seed, one after the other.

Invariant: what is done is read from the run directories, and nothing else is remembered: a sweep
that is begun again, however it ended, goes on with what is not complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from rl_cluster.cluster import training
from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.preparation import PreparedRun, prepare
from rl_cluster.run_directory import RunDirectory, RunDirectoryError, is_in_use
from rl_cluster.signals import StopFlag
from rl_cluster.supervision.admission import AdmissionError
from rl_cluster.sweep_plan import SweepPlan
from rl_cluster.telemetry.summary import Summary, SummaryError, failures_of, read_summary


@dataclass(frozen=True)
class Outcome:
    """How the run of one seed stands."""

    run_dir: Path
    state: Literal["completed", "interrupted", "failed"]
    """A run is failed, too, that is completed but for a task of it."""
    reason: str
    """Why it failed, as far as it is known; else empty."""
    summary: Summary | None
    """None: the run has written none, or ended before this sweep was begun again."""


class Sweep:
    """One program's hand on a sweep; a context manager, since no two may train the same seeds.

    Args:
      announce: receives what each run became on this machine, and its directory.
    """

    def __init__(
        self, plan: SweepPlan, stop: StopFlag, announce: Callable[[PreparedRun, Path], None]
    ) -> None:
        self.plan, self._stop, self._announce = plan, stop, announce
        self._directory = RunDirectory(plan.directory)

    def __enter__(self) -> Sweep:
        """Hold the sweep's directory.

        Raises:
          ConfigError: another sweep's is there.
          RunDirectoryError: another program works on it.
        """
        self._directory.path.mkdir(parents=True, exist_ok=True)
        # A run's keeper may hold it as well as another sweep.
        self._directory.take_lock(
            "wait for it where it is another `rl-cluster sweep`, or name another directory with "
            "--sweep"
        )
        self._directory.sign()
        try:
            self.plan.check_same()
        except ConfigError:
            self._directory.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the next one come."""
        self._directory.release()

    def train(self, seed: int, show: Callable[[Summary], None]) -> Outcome:
        """Let the run of a seed be complete: begin it, go on with it, or leave it as it is.

        A run that failed, or a task of it, is not tried again here, since it would most likely fail
        again; one that could not be started is. One that a sweep which was killed left behind still
        trains, and is watched to its end.

        Args:
          show: receives each new summary.

        Raises:
          ConfigError: the configuration cannot be on this machine.
        """
        directory = RunDirectory(self.plan.run_dir(seed))
        if not is_in_use(directory.path):
            if (ended := _ended(directory.path)) is not None:
                return ended
            if self._stop:
                return Outcome(directory.path, "interrupted", "", None)
            try:
                self._start(training.with_cluster_found(self.plan.seeded(seed)), directory)
            except (AdmissionError, RunDirectoryError, OSError) as error:
                directory.release()
                return Outcome(directory.path, "failed", str(error), None)
        return self._watch(directory, show)

    def _start(self, config: RunConfig, directory: RunDirectory) -> None:
        prepared = prepare(config)
        self.plan.write()
        directory.take(resume=(directory.path / "config.yaml").exists())
        self._announce(prepared, directory.path)
        training.start(config, prepared, directory)

    def _watch(self, directory: RunDirectory, show: Callable[[Summary], None]) -> Outcome:
        try:
            summary = training.watch(directory, self._stop, show)
        except training.Interrupted:
            return Outcome(directory.path, "interrupted", "", None)
        except training.RunFailed as error:
            return Outcome(directory.path, "failed", str(error), None)
        if summary["state"] == "interrupted":
            return Outcome(directory.path, "interrupted", "", summary)
        return _completed_or_failed(directory.path, summary, summary)


def _ended(run_dir: Path) -> Outcome | None:
    """How a run has ended for good; None where it has not begun, or can go on."""
    try:
        summary = read_summary(run_dir)
    except FileNotFoundError:
        return None
    except SummaryError as error:
        return Outcome(run_dir, "failed", str(error), None)
    if summary["state"] in ("completed", "failed"):
        return _completed_or_failed(run_dir, summary, None)
    return None


def _completed_or_failed(run_dir: Path, summary: Summary, shown: Summary | None) -> Outcome:
    failures = failures_of(summary)
    if summary["state"] == "completed" and not failures:
        return Outcome(run_dir, "completed", "", shown)
    return Outcome(run_dir, "failed", failures or f"it is {summary['state']}", shown)
