"""What files need of a disk beyond writing: names that survive a power failure, and room."""

from __future__ import annotations

import os
from pathlib import Path


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
