"""How long a process stands in line for a processor: what tells a starved one from one that hangs.

Invariant: a thread that waits for a lock, that was stopped, or that is not there, stands in no
line; of several threads that do, the one that stood there longest counts. Source: the kernel's run
delay, the second figure of /proc/PID/task/TID/schedstat.
"""

from __future__ import annotations

from pathlib import Path

_NS_PER_S = 1e9


class RunQueue:
    """One process's time in line since this was made.

    Args:
      pid: of a process of this host.
      root: of the file system that has its /proc.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._tasks = root / "proc" / str(pid) / "task"
        self._before_ns = self._delays_ns()

    def waited_s(self) -> float:
        """Seconds of the thread that stood there longest; 0 where the kernel says nothing."""
        waited_ns = [
            delay_ns - self._before_ns.get(thread, 0)
            for thread, delay_ns in self._delays_ns().items()
        ]
        return max(waited_ns, default=0) / _NS_PER_S

    def _delays_ns(self) -> dict[str, int]:
        found = {}
        for file in self._tasks.glob("*/schedstat"):
            try:
                found[file.parent.name] = int(file.read_text().split()[1])
            except (OSError, IndexError):  # it has ended meanwhile
                continue
        return found
