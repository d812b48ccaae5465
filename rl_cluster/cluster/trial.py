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
from rl_cluster.preparation import PreparedRun, prepare
from rl_cluster.run_directory import RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import Summary


def measure(
    trial: RunConfig,
    stop: StopFlag,
    announce: Callable[[PreparedRun, Path], None],
    show: Callable[[Summary], None],
) -> dict[str, Rate] | None:
    """Train, and return how fast each task did; None where `stop` was set first.

    Args:
      trial: as `as_trial` made it.
      announce: receives what it became on this machine, and where it is.
      show: receives each new summary.

    Raises:
      ConfigError, AdmissionError: it cannot be on this machine.
      ForecastError: the run failed, or no task began to learn in the time given.
    """
    config = training.with_cluster_found(trial)
    prepared = prepare(config)
    with tempfile.TemporaryDirectory(prefix="rl-cluster-forecast-") as path:
        directory = RunDirectory(Path(path))
        directory.take(resume=False)
        announce(prepared, directory.path)
        training.start(config, prepared, directory)
        try:
            summary = training.watch(directory, stop, show)
        except training.Interrupted:
            return None
        except training.RunFailed as error:
            raise ForecastError(f"the run that was to be measured failed: {error}") from error
        return None if summary["state"] == "interrupted" else read_rates(directory.path)
