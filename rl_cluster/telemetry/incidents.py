"""Incidents: everything that a person should know happened to a run, one line each.

Invariant: an incident that `IncidentLog.append` returned from is on disk, and none is ever altered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl_cluster.telemetry.jsonl import JsonLines, read_lines

FILE_NAME = "incidents.jsonl"


@dataclass(frozen=True)
class Incident:
    """What happened, why, and what was done about it."""

    time: float
    """Unix seconds."""
    task: str | None
    """None: it concerns the whole run."""
    worker: str | None
    """The worker that it happened to, such as `rollout-0`."""
    kind: str
    """What happened, in a word or two: `died`, `hung`, `worse_than_random`."""
    cause: str
    """Why, as far as it is known."""
    action: str
    """What was done: `restarted`, `parked`, `none`."""
    detail: str = ""
    """Figures, a traceback's last line, names of files."""

    def check_valid(self) -> None:
        """Raise ValueError where a field that readers rely on is empty."""
        for name in ("kind", "cause", "action"):
            if not getattr(self, name):
                raise ValueError(
                    f"incident without {name}: {self}; say what is known, or 'unknown'"
                )


class IncidentLog:
    """The writer of RUN/incidents.jsonl; a resumed run goes on in the same file."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / FILE_NAME
        self._lines = JsonLines(path)
        with path.open("rb") as file:  # a damaged line stops readers, never the writer
            self._count = sum(1 for _ in file)

    @property
    def count(self) -> int:
        """Incidents in the file, those of earlier sessions included."""
        return self._count

    def append(self, incident: Incident) -> None:
        """Write one incident and return when it is on disk.

        Raises:
          ValueError: a field is empty.
          OSError: the disk is full or gone.
        """
        incident.check_valid()
        self._lines.append(asdict(incident))
        self._lines.sync()
        self._count += 1

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._lines.close()


def read_incidents(run_dir: Path) -> list[Incident]:
    """Return the incidents of a run, oldest first; a torn last line is passed over.

    Raises:
      ValueError: a line is no incident; the message names file and line.
    """
    path = run_dir / FILE_NAME
    return [_incident(item, path) for item in read_lines(path)]


def _incident(item: dict[str, Any], path: Path) -> Incident:
    known = {name: item[name] for name in Incident.__dataclass_fields__ if name in item}
    try:
        return Incident(**known)
    except TypeError as error:
        raise ValueError(f"{path}: {item} is no incident ({error}): mend the line") from error
