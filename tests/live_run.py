"""A real run as a person starts it: the command line in a session of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from rl_cluster.control import RUN_MARK

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
_LEAVING_S = 10.0
"""A process that has let go of the run may still be unloading its libraries."""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one `rl-cluster` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rl_cluster.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
    )


class LiveRun:
    """`rl-cluster train` in the background; a context manager that leaves no process behind.

    `instead` names another command that begins this run, such as a sweep's.
    """

    def __init__(
        self,
        config: Path,
        run_dir: Path,
        *settings: str,
        resume: bool = False,
        instead: Sequence[object] = (),
    ) -> None:
        self.run_dir = run_dir
        self._shared_memory = set(os.listdir("/dev/shm"))
        train = ["train", config, "--run", run_dir, *(["--resume"] if resume else [])]
        arguments: list[object] = [*(instead or train)]
        if settings:
            arguments += ["--set", *settings]
        run_dir.parent.mkdir(exist_ok=True)
        self._log = (run_dir.parent / f"{run_dir.name}.log").open("a+")
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl_cluster.cli", *map(str, arguments)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env=environment,
        )

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        while found := self.processes():  # they bring each other back
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=1)
        self.process.wait()
        self._log.close()

    def log(self) -> str:
        """What it has printed."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def summary(self) -> dict[str, Any]:
        """The newest summary.json."""
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return summary

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any]:
        """Wait until a summary meets a condition; fail if the run ends or time is over first."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if (self.run_dir / "summary.json").exists() and condition(self.summary()):
                return self.summary()
            assert self.process.poll() is None, f"the run ended:\n{self.log()}"
            time.sleep(0.2)
        raise AssertionError(f"not within {timeout_s} s:\n{self.log()}")

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Processes of the run, its driver's included, whose command line holds `part`."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                ours = process.pid == self.process.pid or (
                    process.environ().get(RUN_MARK) == str(self.run_dir.absolute())
                )
                alive = process.status() != psutil.STATUS_ZOMBIE
                if ours and alive and part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def interrupt(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the program and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def finish(self, timeout_s: float) -> int:
        """Wait for its own end and return the exit code."""
        return self.process.wait(timeout=timeout_s)

    def check_nothing_left(self) -> None:
        """Fail where a process or shared memory of the run is still there."""
        deadline_s = time.monotonic() + _LEAVING_S
        while self.processes() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert not self.processes(), [p.cmdline() for p in self.processes()]
        left = set(os.listdir("/dev/shm")) - self._shared_memory
        assert not left, left


def lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
