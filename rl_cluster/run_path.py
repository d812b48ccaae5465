"""Where a run's directory is: as it was named, or by a name of its own.

Invariant: in a job of Ray it is not relative to the job's copy of the working directory, which Ray
removes some day, checkpoints and all.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from rl_cluster.run_directory import RunDirectoryError

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray tells the processes of a job; the submission id is in it."""


def run_path(named: Path | None, config: Path) -> Path:
    """The directory of a run: as named, or for this configuration and moment, or for this job.

    Raises:
      RunDirectoryError: a job names a relative path.
    """
    return _path(named, f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}")


def sweep_path(named: Path | None, config: Path) -> Path:
    """The directory of a sweep: as named, or for this configuration, or for this job.

    Raises:
      RunDirectoryError: a job names a relative path.
    """
    return _path(named, f"{config.stem}-sweep")


def _path(named: Path | None, name: str) -> Path:
    job = _submission_id()
    if job is None:
        return named or Path("runs") / name
    if named is None:
        return Path.home() / "runs" / job
    if not named.is_absolute():
        raise RunDirectoryError(
            f"{named} would be in the job's copy of its working directory, which Ray removes some "
            f"day: name an absolute path, or none for {Path.home()}/runs/{job}"
        )
    return named


def _submission_id() -> str | None:
    """Of the job of Ray that this process belongs to; None outside of one."""
    metadata = json.loads(os.environ.get(_JOB, "{}")).get("metadata", {})
    found: str | None = metadata.get("job_submission_id")
    return found
