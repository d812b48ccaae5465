"""What files need of a disk beyond writing: to be whole, to survive a power failure, and room.

Invariant: a file that is being replaced is the old one or the new one, whole, whenever its writer
dies; and what a dead writer left beside it is gone when the next one writes in that directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = ".rl-cluster.tmp"


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends, and never if it raises.

    Args:
      path: the file.
      durable: on disk before it takes its place. Else a power failure may leave it torn, which
        pictures bear: the next one replaces it.

    Raises:
      OSError: the disk is full or gone; what stood at `path` before stays.
    """
    _remove_abandoned(path.parent)
    file = _create_locked(path)
    beside = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file.

    Raises:
      OSError: the disk is full or gone; what stood at `path` before stays.
    """
    with replacing(path) as file:
        file.write(text.encode())


def _create_locked(path: Path) -> BinaryIO:
    while True:
        name = f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}"
        file = path.with_name(name).open("xb")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file
        file.close()  # it is taken for abandoned, since it was not locked yet


def _remove_abandoned(directory: Path) -> None:
    """Remove files whose writers have died: nobody holds their lock, which is let go by death."""
    for path in directory.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # being written, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; a rename alone survives no power failure.

    Raises:
      OSError: the disk refuses, or is gone.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(directory: Path) -> int:
    """Bytes that its disk still takes from us."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
