"""A short run whose only purpose is to be measured.

Invariant: it is a real run, in a directory of its own that is gone when it is over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from rl_cluster.cluster import training
from rl_cluster.config import RunConfig
from rl_cluster.forecast import ForecastError, Rate, read_rates
from rl_cluster.preparation import prepare
from rl_cluster.run_directory import RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import Summary


def measure(trial: RunConfig, stop: StopFlag, show: Callable[[Summary], None]) -> dict[str, Rate]:
    """Train, and return how fast each task did.

    Args:
      trial: as `as_trial` made it.
      show: receives each new summary.

    Raises:
      ConfigError, AdmissionError: it cannot be on this machine.
      Interrupted: `stop` was set.
      RunFailed: the run failed.
      ForecastError: no task began to learn in the time given.
    """
    config = training.with_cluster_found(trial)
    prepared = prepare(config)
    with tempfile.TemporaryDirectory(prefix="rl-cluster-forecast-") as path:
        directory = RunDirectory(Path(path))
        directory.take(resume=False)
        training.start(config, prepared, directory)
        summary = training.watch(directory, stop, show)
        if summary["state"] == "interrupted":
            raise training.Interrupted
        if summary["state"] == "failed":
            failures = [task["failure"] for task in summary["tasks"].values() if task["failure"]]
            raise ForecastError(f"every task failed: {'; '.join(failures)}")
        return read_rates(directory.path)
