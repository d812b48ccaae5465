"""Measuring beside a peer: watched processes, interleaved repeats, one form of result.

Invariant: a figure is taken over a window of wall time and stands beside the peer's figure of the
same minutes, and beside how much of the machine others used meanwhile.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

SAMPLE_PERIOD_S = 0.5
TERMINATION_S = 15.0
QUIET_CORES = 0.25
"""What others may use for a ratio to mean something: torch's threads spin while they wait for each
other, and one other busy process made CleanRL fifteen times slower on two cores."""


class BenchmarkError(RuntimeError):
    """A side could not be measured; the message says what it did instead."""


class CpuSample(NamedTuple):
    """CPU seconds spent until a moment."""

    time: float
    tree_s: float
    """By the process and all its descendants, also those that ended."""
    machine_s: float
    """By everything on the machine."""


@dataclass(frozen=True)
class Window:
    """What one side did between two moments (unix seconds)."""

    start: float
    end: float
    amount: float
    """Units of work done, such as environment steps."""
    cpu_s: float
    others_cores: float
    """Cores that everything else on the machine kept busy, on average."""

    @property
    def rate(self) -> float:
        """Units of work per second."""
        return self.amount / (self.end - self.start)

    @property
    def per_cpu_second(self) -> float:
        """Units of work per CPU second, which other load on the machine hardly changes."""
        return self.amount / self.cpu_s


class WatchedProcess:
    """A command whose whole process tree is watched, and ended with the `with` block."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> None:
        self._process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **env}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._deadline = time.monotonic() + timeout_s
        self._spent: dict[psutil.Process, float] = {}
        self._samples: list[CpuSample] = []
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> WatchedProcess:
        """Start watching."""
        self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process of the tree."""
        self._ended.set()
        self._sampler.join()
        self._process.terminate()
        psutil.wait_procs(self._alive(), timeout=TERMINATION_S)
        for process in self._alive():
            process.kill()
        self._process.wait()

    def lines(self) -> Iterator[tuple[float, str]]:
        """Yield each line of output with the moment it came, until the end or the timeout."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield time.time(), line.rstrip("\n")

    def exit_code(self) -> int:
        """Wait for the end; negative is a signal, also that of the timeout."""
        return self._process.wait()

    def window(self, start: float, end: float, amount: float) -> Window:
        """Return the work done between two moments together with the CPU time spent on it."""
        first, last = self._nearest(start), self._nearest(end)
        cpu_s = last.tree_s - first.tree_s
        others_s = last.machine_s - first.machine_s - cpu_s
        return Window(start, end, amount, cpu_s, max(0.0, others_s / (last.time - first.time)))

    def _nearest(self, moment: float) -> CpuSample:
        index = bisect_left(self._samples, moment, key=lambda sample: sample.time)
        return self._samples[min(index, len(self._samples) - 1)]

    def _sample(self) -> None:
        root = psutil.Process(self._process.pid)
        while not self._ended.wait(SAMPLE_PERIOD_S):
            if time.monotonic() > self._deadline:
                self._process.terminate()
            for process in _tree(root):
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                self._spent[process] = times.user + times.system
            busy = psutil.cpu_times()
            machine_s = sum(busy) - busy.idle - getattr(busy, "iowait", 0.0)
            self._samples.append(CpuSample(time.time(), sum(self._spent.values()), machine_s))

    def _alive(self) -> list[psutil.Process]:
        return [process for process in self._spent if process.is_running()]


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def interleaved(
    us: Callable[[], Window], peer: Callable[[], Window], repeats: int
) -> list[tuple[Window, Window]]:
    """Measure both sides in turn, A B B A …, so that a slow drift of the machine cancels out."""
    pairs = []
    for repeat in range(repeats):
        if repeat % 2 == 0:
            ours = us()
            pairs.append((ours, peer()))
        else:
            theirs = peer()
            pairs.append((us(), theirs))
    return pairs


class Table:
    """Rows of results over the same pairs of windows."""

    def __init__(self, setting: str, peer: str, pairs: Sequence[tuple[Window, Window]]) -> None:
        self.setting, self.peer, self.pairs = setting, peer, pairs
        self.rows: list[dict[str, Any]] = []

    def add(
        self, name: str, unit: str, value: Callable[[Window], float], limit: float | None = None
    ) -> None:
        """Add a row: medians, and the ratio (us / peer) with its range over the pairs.

        Args:
          limit: what the machine would allow at most, in the same unit; None: not measured.
        """
        us = statistics.median(value(ours) for ours, _ in self.pairs)
        theirs = statistics.median(value(theirs) for _, theirs in self.pairs)
        ratios = [value(ours) / value(theirs) for ours, theirs in self.pairs]
        self.rows.append(
            {
                "row": name,
                "setting": self.setting,
                "us": us,
                "unit": unit,
                "peer": self.peer,
                "peer_value": theirs,
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "limit": limit,
                "of_limit": None if limit is None else us / limit,
            }
        )

    def load(self) -> dict[str, Any]:
        """Return how busy others kept the machine while each side was measured."""
        beside_us = [round(ours.others_cores, 2) for ours, _ in self.pairs]
        beside_peer = [round(theirs.others_cores, 2) for _, theirs in self.pairs]
        return {
            "load_average_1_min": os.getloadavg()[0],
            "others_cores_beside_us": beside_us,
            "others_cores_beside_peer": beside_peer,
            "quiet": max(beside_us + beside_peer) <= QUIET_CORES,
        }


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in information if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages in this environment."""
    installed = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **installed}


def write(path: Path, table: Table, versions: Mapping[str, str]) -> None:
    """Print the rows and write them, with all that they depend on, for other programs."""
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": dict(versions),
        "load": table.load(),
        "rows": table.rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in table.rows:
        span = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(f"{row['row']}: {row['us']:.1f} {row['unit']}")
        print(f"  {row['peer']}: {row['peer_value']:.1f}; ratio {row['ratio']:.2f} ({span})")
        if row["limit"] is not None:
            print(f"  limit of the machine: {row['limit']:.1f}; reached {row['of_limit']:.0%}")
    print(f"load: {json.dumps(result['load'])}")
    if not result["load"]["quiet"]:
        print("NOT QUIET: others used the cores meanwhile; measure again on an idle machine")
    print(f"written: {path}")
