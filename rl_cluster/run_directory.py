"""The run directory: made once, written by one process, found again by `--resume`.

Invariant: a directory has at most one keeper, which holds its lock; the kernel lets go of the lock
however that keeper dies, and while its cluster lives on, only an heir of it may come. Nothing in a
directory that is already a run is overwritten without resume.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import dump, load
from rl_cluster.control import Control, ProcessId
from rl_cluster.disk import write_text_atomically
from rl_cluster.effective import EffectiveConfig
from rl_cluster.telemetry.summary import FILE_NAME as SUMMARY
from rl_cluster.telemetry.summary import (
    RunState,
    Summary,
    SummaryError,
    read_summary,
    write_summary,
)

_log = logging.getLogger(__name__)
_CLUSTER = "cluster.json"
_LOCK = "lock"
_SMALL_BYTES = 64 << 10


class RunDirectoryError(RuntimeError):
    """The directory cannot be used for this run; the message says what to do."""


@dataclass(frozen=True)
class ClusterAddress:
    """Where a live run can be reached."""

    address: str
    namespace: str
    daemons: tuple[ProcessId, ...]
    """GCS and raylet of a cluster of the run's own, without any of which it is no more."""

    @property
    def alive(self) -> bool:
        """Whether all of its processes are there."""
        return all(daemon.alive for daemon in self.daemons)


class RunDirectory:
    """A run's files, held by the process that keeps the run."""

    def __init__(self, path: Path, lock_fd: int | None = None) -> None:
        """Name a directory; `lock_fd` is the lock that another process took and handed over."""
        self.path = path.absolute()
        self._lock: IO[str] | None = None if lock_fd is None else os.fdopen(lock_fd, "a+")

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def namespace(self) -> str:
        """Of the run's actors at Ray: on a cluster, others may have directories of that name."""
        place = f"{socket.gethostname()}:{self.path}"
        return f"{self.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

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
        self.take_lock()
        self.sign()
        cluster = read_cluster(self.path)
        if cluster is not None and cluster.daemons and cluster.alive:
            self.release()
            raise RunDirectoryError(
                f"{self.path} is in use by the cluster at {cluster.address} (process "
                f"{cluster.daemons[0].pid}): stop it with `rl-cluster stop`"
            )
        if self._is_run and not resume:
            self.release()
            raise RunDirectoryError(
                f"{self.path} is a run already: add --resume to go on with it, or name another "
                "directory with --run"
            )

    @property
    def _is_run(self) -> bool:
        return (self.path / "config.yaml").exists()

    def take_lock(
        self, else_do: str = "stop it with `rl-cluster stop`, or name another directory with --run"
    ) -> None:
        """Hold the directory.

        Args:
          else_do: what a person can do where another process does, for the message.

        Raises:
          RunDirectoryError: another process does.
        """
        self._lock = (self.path / _LOCK).open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            self._lock = None
            raise RunDirectoryError(f"{self.path} is in use by {holder}: {else_do}") from None

    def sign(self) -> None:
        """Write into the lock who holds it.

        Raises:
          OSError: the disk is full or gone; the lock is held all the same.
        """
        text = f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        os.ftruncate(self.lock_fd, 0)
        # Not through the file's buffer, which would hold what a full disk did not take.
        os.write(self.lock_fd, text.encode())

    @property
    def lock_fd(self) -> int:
        """The lock, to be handed to a process that is started now."""
        assert self._lock is not None
        return self._lock.fileno()

    def is_other(self, requested: RunConfig) -> bool:
        """Whether the session before was of another configuration, or there was none.

        On another cluster it is the same: one that comes back may have another address.
        """
        try:
            before = load(self.path / "config.yaml")
        except ConfigError:
            return True
        return replace(before, cluster=requested.cluster) != requested

    def write_configuration(self, requested: RunConfig, effective: EffectiveConfig) -> None:
        """Write config.yaml and effective.yaml."""
        write_text_atomically(self.path / "config.yaml", dump(requested))
        write_text_atomically(self.path / "effective.yaml", effective.dump())

    def write_address(self, cluster: ClusterAddress) -> None:
        """Say where the run can be reached.

        Raises:
          OSError: the disk is full or gone; what stood there before stays.
        """
        write_text_atomically(self.path / _CLUSTER, json.dumps(asdict(cluster)))

    def forget_address(self) -> None:
        """The run cannot be reached any more, or not yet."""
        (self.path / _CLUSTER).unlink(missing_ok=True)

    @property
    def has_room(self) -> bool:
        """Whether its disk takes a small file now."""
        return takes_a_file(self.path)

    def release(self) -> None:
        """Let the next writer come; a lock that was handed over stays with its heir."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def earlier_summary(self) -> Summary | None:
        """How the session before ended; None where there was none, or its file is damaged."""
        try:
            return read_summary(self.path)
        except (FileNotFoundError, SummaryError) as error:
            if isinstance(error, SummaryError):
                _log.error("passed over: %s", error)
            return None

    def mark_ended(self, state: RunState) -> None:
        """Let the session's summary say how the run ended, where its supervisor could not."""
        began_s = (Control(self.path).read("session") or {}).get("began_at", 0.0)
        summary = self.earlier_summary()
        if summary and summary["state"] == "running" and summary["updated_at"] >= began_s:
            summary["state"] = state
            try:
                write_summary(self.path, summary)
            except OSError as error:
                _log.error("its summary does not say that it is over: %s", error)


def takes_a_file(directory: Path) -> bool:
    """Whether there is room in a directory for a small file."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(_SMALL_BYTES))
            file.flush()
    except OSError:
        return False
    return True


def is_in_use(run_dir: Path) -> bool:
    """Whether a process keeps the run, or its cluster is still there."""
    try:
        with (run_dir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    cluster = read_cluster(run_dir)
    return cluster is not None and bool(cluster.daemons) and cluster.alive


def read_cluster(run_dir: Path) -> ClusterAddress | None:
    """The cluster that a run last said that it is on; None where it is on none."""
    try:
        content = json.loads((run_dir / _CLUSTER).read_text())
        daemons = tuple(ProcessId(**daemon) for daemon in content["daemons"])
        return ClusterAddress(content["address"], content["namespace"], daemons)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_reported(run_dir: Path) -> bool:
    """Whether summary.json is of the cluster that the run is on, and not of one before."""
    try:
        written_s = (run_dir / SUMMARY).stat().st_mtime
        return written_s >= (run_dir / _CLUSTER).stat().st_mtime
    except FileNotFoundError:
        return False


def read_address(run_dir: Path) -> ClusterAddress:
    """Where a live run can be reached.

    Raises:
      RunDirectoryError: the run is not live, is still starting, or this is no run.
    """
    cluster = read_cluster(run_dir)
    if cluster is not None and is_in_use(run_dir):
        return cluster
    if is_in_use(run_dir):
        raise RunDirectoryError(f"{run_dir} is starting: try again in a few seconds")
    raise not_running(run_dir)


def not_running(run_dir: Path) -> RunDirectoryError:
    """What to do where nobody keeps a run."""
    return RunDirectoryError(
        f"{run_dir} is not running now: `rl-cluster train CONFIG --resume --run {run_dir}` goes on "
        "with it"
    )
