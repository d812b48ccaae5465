"""The process of the tracker: it stands beside the run, and costs it nothing.

So W&B may be slow, away or broken: training does not wait for it. Invariant: at most one tracker
follows a run.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rl_cluster.control import Control
from rl_cluster.orphan import launch_orphan
from rl_cluster.signals import StopFlag

_log = logging.getLogger(__name__)
ROLE = "tracker"
_TRAVEL = ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY")


def wandb_environment() -> dict[str, str]:
    """What a person's environment says of where figures go; no secret is among it."""
    return {name: os.environ[name] for name in _TRAVEL if name in os.environ}


def launch(run_dir: Path) -> None:
    """Start a tracker that is nobody's child, in what `wandb_environment` was for the session.

    A cluster of others, or a boot, has another environment.
    """
    session = Control(run_dir).read("session") or {}
    command = [sys.executable, "-m", "rl_cluster.telemetry.tracker_process", str(run_dir)]
    others = {name: value for name, value in os.environ.items() if name not in _TRAVEL}
    environment = others | session.get("wandb", wandb_environment())
    launch_orphan(command, run_dir / "tracker.log", environment)


def main(argv: Sequence[str] | None = None) -> int:
    """Follow the run in a directory, unless another tracker does."""
    parser = argparse.ArgumentParser(prog="rl-cluster-tracker", description=main.__doc__)
    parser.add_argument("run", type=Path)
    run_dir = parser.parse_args(argv).run
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = StopFlag()
    stop.install()
    lock = _lock(run_dir)
    if lock is None:
        _log.info("another tracker follows %s", run_dir)
        return 0
    from rl_cluster.telemetry.tracker import Tracker  # brings numpy, whose threads take signals

    with lock:
        Control(run_dir).sign(ROLE, os.getpid())
        Tracker(run_dir).follow(stop)
    return 0


def _lock(run_dir: Path) -> IO[str] | None:
    """The place of the run's tracker; None where it is taken."""
    lock = (Control(run_dir).path / f"{ROLE}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


if __name__ == "__main__":
    sys.exit(main())
