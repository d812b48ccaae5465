"""The fence: an epoch that every writer carries and every store checks while it commits.

Invariant: no change is committed under an epoch that `advance` has ended, and the epoch on disk
never falls below one that `advance` returned. A writer commits within `hold()`, which takes the
lock shared and compares epochs; `advance` takes it exclusively, so check and commit are one: a
writer that was frozen before its check is refused when it thaws, and one frozen after it keeps
`advance` waiting until it is killed (the kernel lets go of a dead process's lock).

    PATH        the epoch, in two copies of 4,096 bytes, each with a sum of itself. Written in
                place, since a full disk cannot refuse that; the newer copy last, so that a write
                cut short spoils the other one.
    PATH.lock   what is locked; empty, and never removed while a writer may live
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.disk import sync_directory

_COPY_BYTES = 4096
_HOLD_TIMEOUT_S = 10.0
_POLL_S = 0.005


class StaleEpoch(RuntimeError):
    """A writer's epoch is over: another has taken its place, and it may write nothing more."""


class FenceHeld(TimeoutError):
    """The lock could not be had in time: whoever holds it is frozen."""


class FenceDamaged(OSError):
    """No copy of the epoch can be read."""


@dataclass(frozen=True)
class Fence:
    """What a writer of epoch `epoch` shows to every store it writes to.

    Attributes:
      path: the file of the present epoch; missing means 0.
      epoch: what `advance` returned when this writer was started, >= 0.
    """

    path: Path
    epoch: int

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Commit in here, and do nothing slow: `advance` waits for the end of it.

        May be entered by any number of processes and threads at once, and within itself.

        Raises:
          StaleEpoch: the present epoch is not this one; nothing may be changed.
          FenceHeld: no lock within 10 s, since a process froze within `advance`.
          FenceDamaged: the epoch cannot be read.
        """
        with _locked(self.path, fcntl.LOCK_SH, _HOLD_TIMEOUT_S):
            present = read_epoch(self.path)
            if present != self.epoch:
                raise StaleEpoch(
                    f"{self.path} is at epoch {present}, this writer (process {os.getpid()}) is "
                    f"of epoch {self.epoch}: another took its place; nothing was written, end it"
                )
            yield


def advance(path: Path, timeout_s: float) -> int:
    """End the present epoch; return the one that the next writers carry. Needs no disk space.

    Raises:
      FenceHeld: a writer was within `hold` for all of `timeout_s`; kill it, then try again.
      FenceDamaged: the epoch cannot be read.
    """
    with _locked(path, fcntl.LOCK_EX, timeout_s):
        epoch = read_epoch(path) + 1
        if path.exists():
            _overwrite(path, _copy(epoch))
        else:
            _create(path, _copy(epoch))
        return epoch


def read_epoch(path: Path) -> int:
    """The present epoch: the higher of the whole copies; 0 where there is no file.

    Raises:
      FenceDamaged: no copy is whole.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    epoch = max(_epochs(content))
    if epoch < 0:
        raise FenceDamaged(
            f"{path} holds no epoch that can be read: end every process of this run, remove the "
            "file, and resume the run"
        )
    return epoch


def _epochs(content: bytes) -> tuple[int, int]:
    """The epoch of each copy, -1 where it is torn."""
    return _decoded(content[:_COPY_BYTES]), _decoded(content[_COPY_BYTES:])


def _copy(epoch: int) -> bytes:
    digits = f"{epoch:020d}"
    line = f"{digits} {_sum(digits.encode())}\n"
    return line.encode().ljust(_COPY_BYTES - 1) + b"\n"


def _decoded(copy: bytes) -> int:
    digits = copy[:20]
    whole = digits.isdigit() and copy == _copy(int(digits))
    return int(digits) if whole else -1


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _overwrite(path: Path, copy: bytes) -> None:
    first, second = _epochs(path.read_bytes())
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset in (0, _COPY_BYTES) if first < second else (_COPY_BYTES, 0):
            if os.pwrite(descriptor, copy, offset) != len(copy):
                raise OSError(errno.ENOSPC, "the epoch was not written whole", str(path))
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path, copy: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")  # under the exclusive lock, so there is one
    with temporary.open("wb") as file:
        file.write(copy * 2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def _locked(path: Path, operation: int, timeout_s: float) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(lock, descriptor, operation, timeout_s)
        yield
    finally:
        # A child forked meanwhile shares the lock: closing ours alone would not let go of it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for(lock: Path, descriptor: int, operation: int, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise FenceHeld(
                    f"{lock} was held for {timeout_s:g} s by a process that does not go on: kill "
                    f"that process (`fuser {lock}` names it), then try again"
                ) from None
        time.sleep(_POLL_S)
