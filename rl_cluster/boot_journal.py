"""RUN/boots.jsonl: under which boot of the host, and which load, each session of a run worked.

Invariant: an entry that a method returned from would survive a power failure. A torn last line is
cut off; a file damaged otherwise is put aside and named, and never stops a run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from rl_cluster.supervision.boots import BootEntry
from rl_cluster.supervision.load import Load
from rl_cluster.telemetry.jsonl import JsonLines, put_aside, read_lines

FILE_NAME = "boots.jsonl"
UNKNOWN_BOOT = "unknown"
"""Boot id where the kernel tells none: no boot then differs from another, and none caps."""

_ENTRY = TypeAdapter(BootEntry)


def present_boot_id(root: Path = Path("/")) -> str:
    """Return the kernel's boot id.

    Args:
      root: where `proc` is mounted.
    """
    try:
        text = (root / "proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return UNKNOWN_BOOT
    return text.strip() or UNKNOWN_BOOT


class BootJournal:
    """One session's hand on the journal of its run.

    Args:
      run_dir: the run's directory.
      boot_id: the present boot's.
    """

    def __init__(self, run_dir: Path, boot_id: str) -> None:
        path = run_dir / FILE_NAME
        self._boot_id = boot_id
        self._load: Load | None = None
        self.damage: str | None = None
        """What was wrong with the file found, and where it lies now; None: nothing."""
        try:
            self.earlier = _entries(path)
            """Entries of earlier sessions, oldest first."""
        except ValueError as error:
            self.damage = f"{error}; the file was put aside as {put_aside(path).name}"
            self.earlier = []
        self._lines = JsonLines(path)

    def note(self, load: Load, now_s: float) -> None:
        """Write the load that runs from here on, where it is not the one noted last.

        Raises:
          OSError: the disk is full or gone.
        """
        if load != self._load:
            self._append(BootEntry(self._boot_id, now_s, load, clean=False))
            self._load = load

    def end(self, now_s: float) -> None:
        """Write that the session ends in order; without a load noted there was no session.

        Raises:
          OSError: the disk is full or gone.
        """
        if self._load is not None:
            self._append(BootEntry(self._boot_id, now_s, self._load, clean=True))
            self._load = None

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._lines.close()

    def _append(self, entry: BootEntry) -> None:
        self._lines.append(asdict(entry))
        self._lines.sync()


def _entries(path: Path) -> list[BootEntry]:
    """Raises: ValueError: a line is no entry; the message names the file."""
    items = list(read_lines(path))
    try:
        return [_ENTRY.validate_python(item) for item in items]
    except ValueError as error:
        raise ValueError(f"{path} holds a line that is no boot entry: {error}") from error
