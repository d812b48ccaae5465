"""RUN/control: what a run's processes tell each other through files, so that none needs another.

Invariant: every file is replaced whole or only touched, so a reader sees an old one or a new one,
and none is needed to start a run: a lost one costs what it said. Pulses are told by their change,
never by the time they carry, so a clock that jumps says nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl_cluster.boot_journal import present_boot_id
from rl_cluster.disk import sync_directory, write_text_atomically
from rl_cluster.telemetry.jsonl import put_aside

_log = logging.getLogger(__name__)

RUN_MARK = "RL_CLUSTER_RUN"
"""Environment variable, in every process of a kept run, that holds the run's directory."""

REFUSED = 2
"""Exit code of a start that cannot be, so that trying again is no use."""
NO_ROOM = 4
"""Exit code of a start for which others have left no room: tried again for as long as it takes."""


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    start_ticks: int
    """Clock ticks from the boot to its start, which no change of the clock moves."""
    boot_id: str

    @staticmethod
    def of(pid: int) -> ProcessId:
        """The process that has this number now.

        Raises:
          ProcessLookupError: there is none.
        """
        return ProcessId(pid, int(_stat(pid)[19]), present_boot_id())

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped, but is not a zombie."""
        try:
            fields = _stat(self.pid)
        except ProcessLookupError:
            return False
        same = (int(fields[19]), present_boot_id()) == (self.start_ticks, self.boot_id)
        return same and fields[0] != "Z"

    @property
    def stopped(self) -> bool:
        """Whether a signal (SIGSTOP, SIGTSTP) keeps it from running; a debugger does not count."""
        try:
            return self.alive and _stat(self.pid)[0] == "T"
        except ProcessLookupError:  # it has died since
            return False


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: state, parent, … (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    return text[text.rindex(")") + 2 :].split()


class Control:
    """The control files of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "control"
        self.path.mkdir(parents=True, exist_ok=True)

    def request(self, what: str) -> None:
        """Ask for `stop`, or for another cluster (`recycled`).

        With `leave` beside it, a stop is the host's own, and whoever keeps the run next goes on.
        """
        (self.path / f"{what}.request").touch()

    def requested(self, what: str) -> bool:
        """Whether that was asked for."""
        return (self.path / f"{what}.request").exists()

    def clear(self, what: str) -> None:
        """It was done, or is no longer wanted."""
        (self.path / f"{what}.request").unlink(missing_ok=True)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace NAME.json.

        Raises:
          OSError: the disk is full or gone; the old file stays.
        """
        text = json.dumps(content, allow_nan=False, indent=1)
        write_text_atomically(self.path / f"{name}.json", text)

    def keep(self, name: str, content: dict[str, Any]) -> None:
        """Replace NAME.json, so that a power failure after this returns leaves the new one.

        Raises:
          OSError: the disk is full or gone.
        """
        self.write(name, content)
        sync_directory(self.path)

    def has_written(self, name: str, content: dict[str, Any]) -> bool:
        """`write`, where a disk that refuses is named in the log, and stops nothing."""
        try:
            self.write(name, content)
        except OSError as error:
            _log.error("%s not written: %s", name, error)
            return False
        return True

    def put_aside(self, name: str) -> str | None:
        """Move a NAME.json that says nothing out of the way; where it is now, None: there is none.

        Raises:
          OSError: it cannot be moved.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        return f"{path} cannot be understood; it was put aside as {put_aside(path).name}"

    def read(self, name: str) -> dict[str, Any] | None:
        """NAME.json, or None where there is none, or none that is whole."""
        try:
            content = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, and nobody but a person goes on with it."""
        ended = self.read("ended")
        goes_on = {"failed": True, "interrupted": self.requested("leave")}
        return ended is not None and not goes_on.get(ended["state"], False)

    def forget(self, name: str) -> None:
        """Remove NAME.json."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def sign(self, role: str, pid: int) -> None:
        """Say which process plays a role now."""
        self.write(role, asdict(ProcessId.of(pid)))

    def signed(self, role: str) -> ProcessId | None:
        """The process that last said that it plays a role."""
        try:
            return ProcessId(**(self.read(role) or {}))
        except TypeError:  # there is none, or none that is whole
            return None

    def beat(self, role: str) -> None:
        """Show that whoever plays a role gets on; where no file can be made, it is not seen."""
        with contextlib.suppress(OSError):
            (self.path / f"{role}.pulse").touch()

    def pulse(self, role: str) -> int | None:
        """A number that changes with every beat; None before the first."""
        try:
            return os.stat(self.path / f"{role}.pulse").st_mtime_ns
        except OSError:
            return None


class PulseReader:
    """How long ago a role's pulse last changed, on the reader's own clock."""

    def __init__(self, control: Control, role: str, now_s: float) -> None:
        self._control, self._role = control, role
        self._last, self._changed_s = control.pulse(role), now_s

    def silence_s(self, now_s: float) -> float:
        """Seconds since the last change that was seen, or since `reset`."""
        pulse = self._control.pulse(self._role)
        if pulse != self._last:
            self._last, self._changed_s = pulse, now_s
        return now_s - self._changed_s

    def reset(self, now_s: float) -> None:
        """Give it time from now on."""
        self._changed_s = now_s
