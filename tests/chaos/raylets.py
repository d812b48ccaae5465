"""A Ray cluster that the run does not own: several raylets on this host, made by `ray start`.

Invariant: every process of it carries a mark, and only what carries the mark is ever hurt or ended;
`ray stop` ends other people's clusters, too, and is never used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_MARK = "RL_CLUSTER_CHAOS_CLUSTER"
_STORE_BYTES = 200_000_000
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""A frozen node is noticed after about 10 s; with Ray's defaults it takes more than a minute."""


class RayCluster:
    """Raylets on this host; a context manager that leaves no process and no file behind.

    Args:
      nodes: raylets, the head's included.
      settings: Ray's own, as environment variables.
    """

    def __init__(self, nodes: int, settings: dict[str, str]) -> None:
        # Paths of sockets have 107 characters at most.
        self.path = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
        self._environment = _clean_environment() | settings | {
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(self.path),
            _MARK: str(self.path),
        }  # fmt: skip
        self._nodes = nodes
        self.raylets: list[psutil.Process] = []
        """The head's first."""

    def __enter__(self) -> RayCluster:
        try:
            self._ray("get-auth-token", "--generate")
            port = _free_port()
            self._start_node("--head", f"--port={port}", "--include-dashboard=false",
                             f"--temp-dir={self.path}")  # fmt: skip
            self.address = _gcs_address(self.raylets[0])
            self._gcs = self.the("gcs_server").cmdline()
            for _ in range(self._nodes - 1):
                self._start_node(f"--address={self.address}")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _start_node(self, *arguments: str) -> None:
        before = set(self._named("raylet"))
        self._ray("start", "--num-cpus=2", f"--object-store-memory={_STORE_BYTES}",
                  "--disable-usage-stats", *arguments)  # fmt: skip
        self.raylets += set(self._named("raylet")) - before

    def _ray(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def the(self, name: str) -> psutil.Process:
        """The one process of the cluster that has this name."""
        (found,) = self._named(name)
        return found

    def _named(self, name: str) -> list[psutil.Process]:
        return [p for p in self.processes() if _name(p) == name]

    def processes(self) -> list[psutil.Process]:
        """Live processes of the cluster, workers included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(_MARK) == str(self.path)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def node(self, raylet: psutil.Process) -> list[psutil.Process]:
        """A raylet and everything that runs under it."""
        return [raylet, *raylet.children(recursive=True)]

    def restart_gcs(self) -> None:
        """What an operator's service does after the death of the control store."""
        subprocess.Popen(self._gcs, env=self._environment, start_new_session=True)

    def end(self) -> None:
        """Kill all of it, and remove its files."""
        while found := self.processes():
            signal_all(found, signal.SIGKILL)
            psutil.wait_procs(found, timeout=0.5)
        shutil.rmtree(self.path, ignore_errors=True)


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def _gcs_address(raylet: psutil.Process) -> str:
    """Ray takes this host's outer address, whatever it is told."""
    flag = "--gcs-address="
    return next(a.removeprefix(flag) for a in raylet.cmdline() if a.startswith(flag))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""
