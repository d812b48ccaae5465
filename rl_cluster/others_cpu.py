"""How much of the machine's CPU others use: the host's busy time without that of our processes.

Invariant: whatever our own processes do, and however many start, it counts as nobody else's
(lesson L19); an interval that cannot tell says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.control import RUN_MARK

_CPU_PERIOD_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def marked_with(run_dir: Path, root: Path = Path("/")) -> Callable[[int], bool]:
    """Return the test for processes that were started with this run's mark in their environment.

    Processes of other users, whose environment cannot be read, are not ours.
    """
    mark = f"{RUN_MARK}={run_dir}".encode()

    def ours(pid: int) -> bool:
        try:
            return mark in (root / "proc" / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    return ours


@dataclass(frozen=True)
class _Cpu:
    """Clock ticks since boot."""

    total: int
    busy: int
    ours: dict[tuple[int, int], int]
    """Process id and start to the ticks of the process and of the children that it waited for."""


class OthersCpu:
    """The share of the machine's CPU that programs other than ours use, over 10 s and more.

    Time that a hypervisor took away is others' too. An interval in which a process of ours ended
    says nothing, since its last ticks are gone.

    Args:
      ours: whether a process, by its id, is this run's; the children of such processes are too.
      root: where `proc` is mounted.
    """

    def __init__(self, ours: Callable[[int], bool], root: Path = Path("/")) -> None:
        self._ours = ours
        self._root = root
        self._before = self._look()
        self._share: float | None = None

    def share(self) -> float | None:
        """Return 0 to 1 of all cores over the last whole interval, or None."""
        before, host = self._before, _host_cpu(self._root)
        period = _CPU_PERIOD_S * _TICKS_PER_S * _num_cores(self._root)
        if before is None or host is None or host[0] - before.total >= period:
            self._before = now = self._look()
            self._share = None if before is None or now is None else _others_share(before, now)
        return self._share

    def _look(self) -> _Cpu | None:
        host = _host_cpu(self._root)
        return None if host is None else _Cpu(*host, _own_ticks(self._ours, self._root))


def _others_share(before: _Cpu, now: _Cpu) -> float | None:
    if not before.ours.keys() <= now.ours.keys() or now.total <= before.total:
        return None
    ours = sum(ticks - before.ours.get(key, 0) for key, ticks in now.ours.items())
    others = now.busy - before.busy - ours
    return min(max(others / (now.total - before.total), 0.0), 1.0)


def _host_cpu(root: Path) -> tuple[int, int] | None:
    """Return all ticks and the busy ones, of all cores together."""
    fields = _text(root / "proc/stat").partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields)
    busy = user + nice + system + irq + softirq + steal
    return busy + idle + iowait, busy


def _num_cores(root: Path) -> int:
    lines = _text(root / "proc/stat").splitlines()
    return max(1, sum(line.startswith("cpu") and line[3].isdecimal() for line in lines))


def _own_ticks(ours: Callable[[int], bool], root: Path) -> dict[tuple[int, int], int]:
    processes = dict(_processes(root))
    own = {pid for pid in processes if ours(pid)}
    while more := {p for p, stat in processes.items() if stat.parent in own} - own:
        own |= more
    return {(pid, processes[pid].start): processes[pid].ticks for pid in own}


@dataclass(frozen=True)
class _Process:
    parent: int
    start: int
    """Ticks from boot to its start."""
    ticks: int


def _processes(root: Path) -> Iterator[tuple[int, _Process]]:
    """Yield every process that is there (proc(5), `stat`)."""
    for directory in (root / "proc").glob("[0-9]*"):
        # The name, in parentheses, may hold blanks and parentheses of its own.
        fields = _text(directory / "stat").rpartition(")")[2].split()
        if len(fields) > 19:
            ticks = sum(map(int, fields[11:15]))
            yield int(directory.name), _Process(int(fields[1]), int(fields[19]), ticks)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
