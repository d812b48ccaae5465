"""rl-cluster: continuous, distributed actor/learner reinforcement learning on Ray."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_cluster.cluster.handle import RunHandle
    from rl_cluster.comparison import Comparison
    from rl_cluster.notebook.recorded import RecordedRun

__version__ = "0.1.0"


def attach(run_dir: str | Path, wait_s: float = 0.0) -> RunHandle:
    """Connect to the live run in a directory; see `rl_cluster.cluster.handle.attach`."""
    # Here, so that the plain parts can be imported without Ray.
    from rl_cluster.cluster.handle import attach as attach_to_run

    return attach_to_run(run_dir, wait_s)


def open_run(run_dir: str | Path) -> RecordedRun:
    """Read a run's directory, live or ended; see `rl_cluster.notebook.recorded.open_run`."""
    from rl_cluster.notebook.recorded import open_run as open_recorded

    return open_recorded(run_dir)


def compare(paths: Iterable[str | Path]) -> Comparison:
    """Compare runs and sweeps; see `rl_cluster.comparison.compare`."""
    from rl_cluster.comparison import compare as compare_runs

    return compare_runs(paths)
