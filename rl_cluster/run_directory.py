"""The run directory: made once, written by one process, found again by `--resume`.

Invariant: a directory has at most one writer, which holds its lock; the kernel lets go of the lock
however that writer dies. Nothing in a directory that is already a run is overwritten without
resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rl_cluster.config import RunConfig
from rl_cluster.config_file import dump
from rl_cluster.effective import EffectiveConfig
from rl_cluster.telemetry.summary import (
    Summary,
    read_summary,
    write_summary,
    write_text_atomically,
)

_CLUSTER = "cluster.json"
_LOCK = "lock"


class RunDirectoryError(RuntimeError):
    """The directory cannot be used for this run; the message says what to do."""


@dataclass(frozen=True)
class ClusterAddress:
    """Where a live run can be reached."""

    address: str
    namespace: str
    pid: int


class RunDirectory:
    """A run's files, held by the process that writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Name of the run, which is also its Ray namespace."""
        return self.path.name

    def take(self, resume: bool) -> None:
        """Lock the directory for writing.

        Raises:
          RunDirectoryError: another process holds it, it is a run already, or there is none to
            resume.
        """
        if resume and not self._is_run:
            raise RunDirectoryError(
                f"{self.path} holds no run to resume: name one with --run, or leave --resume out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if self._is_run and not resume:
            self.release()
            raise RunDirectoryError(
                f"{self.path} is a run already: add --resume to go on with it, or name another "
                "directory with --run"
            )

    @property
    def _is_run(self) -> bool:
        return (self.path / "config.yaml").exists()

    def _take_lock(self) -> None:
        self._lock = (self.path / _LOCK).open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise RunDirectoryError(
                f"{self.path} is in use by {self._lock.read().strip() or 'another process'}: "
                "stop it with `rl-cluster stop`, or name another directory with --run"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._lock.flush()

    def write_configuration(self, requested: RunConfig, effective: EffectiveConfig) -> None:
        """Write config.yaml and effective.yaml."""
        write_text_atomically(self.path / "config.yaml", dump(requested))
        write_text_atomically(self.path / "effective.yaml", effective.dump())

    def write_address(self, address: ClusterAddress) -> None:
        """Say where the run can be reached."""
        write_text_atomically(self.path / _CLUSTER, json.dumps(asdict(address)))

    def mark_failed(self) -> None:
        """Let the summary say that the run failed, where one was written."""
        summary = self.earlier_summary()
        if summary is not None:
            write_summary(self.path, {**summary, "state": "failed", "updated_at": time.time()})

    def release(self) -> None:
        """The run is over: nobody can be reached, and the next writer may come."""
        (self.path / _CLUSTER).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def earlier_summary(self) -> Summary | None:
        """How the session before ended; None where there was none."""
        try:
            return read_summary(self.path)
        except FileNotFoundError:
            return None


def read_address(run_dir: Path) -> ClusterAddress:
    """Where a live run can be reached.

    Raises:
      RunDirectoryError: the run is not live, or this is no run.
    """
    try:
        address = ClusterAddress(**json.loads((run_dir / _CLUSTER).read_text()))
        with (run_dir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return address
    except FileNotFoundError:
        pass
    raise RunDirectoryError(
        f"{run_dir} is not running now: `rl-cluster train CONFIG --resume --run {run_dir}` goes on "
        "with it"
    )
