"""Sides of a comparison: processes that work in turn, watched with all their descendants.

Invariant: only the side whose turn it is runs; the others wait for a question or, where a side
cannot wait by itself, are frozen whole (SIGSTOP). A figure is units of work over a window of wall
time, with the CPU seconds of the side's whole process tree and what others used meanwhile.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_TIMEOUT_S = 300.0
_MARK = "BENCHMARK_SIDE"
ENDING_S = 10.0
_TAIL_LINES = 20


class BenchmarkError(RuntimeError):
    """A side could not be measured; the message says what it did instead."""


@dataclass(frozen=True)
class Window:
    """What one side did in one turn."""

    amount: float
    """Units of work done, such as environment steps."""
    wall_s: float
    cpu_s: float
    """By the side's process and all its descendants."""
    others_cores: float
    """Cores that everything else on the machine kept busy, on average."""

    @property
    def rate(self) -> float:
        """Units of work per second."""
        return self.amount / self.wall_s

    @property
    def per_cpu_second(self) -> float:
        """Units of work per CPU second, which other load on the machine hardly changes."""
        return self.amount / self.cpu_s


class Side(Protocol):
    """One competitor."""

    def turn(self, seconds: float) -> Window:
        """Work for so long, alone."""
        ...


def side_mark() -> dict[str, str]:
    """Environment by which a side's processes are known, also those that are nobody's children."""
    return {_MARK: uuid.uuid4().hex}


class Tree:
    """CPU time of a process and its descendants, also of those that ended while it was watched.

    Whoever carries the same `side_mark` as the process belongs to it, too.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._mark: str | None = None
        with suppress(psutil.Error):  # it may have ended already
            self._mark = self._root.environ().get(_MARK)
        self._spent: dict[psutil.Process, float] = {}

    def processes(self) -> list[psutil.Process]:
        """Return those that live."""
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            for process in (self._root, *self._root.children(recursive=True)):
                found[process.pid] = process
        for process in psutil.process_iter() if self._mark else ():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def cpu_s(self) -> float:
        """CPU seconds spent until now."""
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._spent[process] = times.user + times.system
        return sum(self._spent.values())

    def signal(self, number: int) -> None:
        """Send a signal to every process: freezing root first, so that none is started behind."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    def end(self) -> None:
        """End every process: asked first, then killed."""
        processes = self.processes()
        self.signal(signal.SIGCONT)
        with suppress(psutil.Error):
            self._root.terminate()
        psutil.wait_procs(processes, timeout=ENDING_S)
        while alive := [p for p in self.processes() if p.status() != psutil.STATUS_ZOMBIE]:
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=1.0)


class Watch:
    """Measures a window: CPU seconds of a tree, and what the rest of the machine used."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._start_s, self._cpu_s, self._machine_s = time.time(), tree.cpu_s(), machine_cpu_s()

    def window(self, amount: float, wall_s: float) -> Window:
        """Close the window: so many units of work in so many seconds."""
        cpu_s = self._tree.cpu_s() - self._cpu_s
        others_s = machine_cpu_s() - self._machine_s - cpu_s
        return Window(amount, wall_s, cpu_s, max(0.0, others_s / (time.time() - self._start_s)))


def machine_cpu_s() -> float:
    """CPU seconds that everything on this machine has used."""
    busy = psutil.cpu_times()
    return float(sum(busy) - busy.idle - getattr(busy, "iowait", 0.0))


class ServedSide:
    """A side whose process runs `serve.serve`: it works when asked, and waits meanwhile.

    Args:
      python: interpreter of the side's environment.
      script: the side's program, below experiments/benchmarks.
      asked: JSON arguments of the script.
      env: variables beside our own.

    Raises:
      BenchmarkError: it ended, or was not ready in time.
    """

    def __init__(
        self,
        python: Path,
        script: str,
        asked: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = script
        paths = os.pathsep.join([str(HERE), str(ROOT)])
        self._process = subprocess.Popen(
            [str(python), "-u", str(HERE / script), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths, **(env or {}), **side_mark()},
            start_new_session=True,
        )  # fmt: skip
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._noise: deque[str] = deque(maxlen=_TAIL_LINES)
        threading.Thread(target=self._read_answers, daemon=True).start()
        threading.Thread(target=self._read_noise, daemon=True).start()
        self.tree = Tree(self._process.pid)
        try:
            self.versions: dict[str, str] = self._answer(START_TIMEOUT_S)["versions"]
        except BenchmarkError:
            self.close()
            raise

    def __enter__(self) -> ServedSide:
        """Return the side."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End its processes."""
        self.close()

    def turn(self, seconds: float) -> Window:
        """Work for so long, alone."""
        watch = Watch(self.tree)
        done = self.ask({"do": "work", "seconds": seconds}, 10 * seconds + START_TIMEOUT_S)
        return watch.window(done["amount"], done["wall_s"])

    def facts(self) -> dict[str, Any]:
        """Ask for what the side knows of itself."""
        return self.ask({"do": "facts"}, START_TIMEOUT_S)

    def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one question and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer(timeout_s)

    def close(self) -> None:
        """End its processes."""
        self.tree.end()
        self._process.wait()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            line = None
        if line is None:
            said = "\n".join(self._noise)
            raise BenchmarkError(f"{self.name}: no answer within {timeout_s:.0f} s\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _read_noise(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._noise.append(line.rstrip("\n"))


def run_once(command: Sequence[str], timeout_s: float) -> str:
    """Return what a command prints; BenchmarkError with its last lines where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()][-_TAIL_LINES:]
        raise BenchmarkError("\n".join([*lines, f"{command[0]} ended with {done.returncode}"]))
    return done.stdout
