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
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

_MARK = "RL_CLUSTER_CHAOS_CLUSTER"
_STORE_BYTES = 300_000_000
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
      keeps_state: the control store's content survives it, in RocksDB.
    """

    def __init__(
        self, nodes: int, settings: Mapping[str, str] | None = None, keeps_state: bool = False
    ) -> None:
        # Paths of sockets have 107 characters at most.
        self.path = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
        store = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.path / "gcs")}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **(settings or {}),
            **(store if keeps_state else {}),
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(self.path),
            _MARK: str(self.path),
        }
        self._nodes = nodes
        self.address = ""
        self._head: psutil.Process

    def __enter__(self) -> RayCluster:
        try:
            self._ray("get-auth-token", "--generate")
            self._start("--head", f"--port={_free_port()}", "--include-dashboard=false",
                        f"--temp-dir={self.path}")  # fmt: skip
            (self._head,) = self._named("raylet")
            self.address = _gcs_address(self._head)
            for _ in range(self._nodes - 1):
                self.add_node()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def add_node(self, *arguments: str) -> psutil.Process:
        """Start one more raylet, with arguments of `ray start`."""
        before = self._named("raylet")
        self._start(f"--address={self.address}", *arguments)
        (made,) = (raylet for raylet in self._named("raylet") if raylet not in before)
        return made

    def nodes_beside_head(self) -> list[psutil.Process]:
        """Raylets that the cluster can do without."""
        return [raylet for raylet in self._named("raylet") if raylet != self._head]

    def gcs(self) -> psutil.Process:
        """The control store."""
        (found,) = self._named("gcs_server")
        return found

    def restart_gcs(self, dead: psutil.Process, command: list[str]) -> None:
        """What a service does after the death of the control store."""
        dead.wait(10)  # reaps one that was started here
        with (self.path / "gcs.log").open("ab") as log:
            subprocess.Popen(command, env=self._environment, start_new_session=True,
                             stdout=log, stderr=log)  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Live processes of the cluster, workers included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(_MARK) == str(self.path)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _named(self, name: str) -> list[psutil.Process]:
        return [process for process in self.processes() if _name(process) == name]

    def _start(self, *arguments: str) -> None:
        self._ray("start", "--num-cpus=2", f"--object-store-memory={_STORE_BYTES}",
                  "--disable-usage-stats", *arguments)  # fmt: skip

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

    def _end(self) -> None:
        while found := self.processes():
            signal_all(found, signal.SIGKILL)
            psutil.wait_procs(found, timeout=0.5)
        shutil.rmtree(self.path, ignore_errors=True)


def node_of(raylet: psutil.Process) -> list[psutil.Process]:
    """Workers and agents of a raylet, and last itself."""
    return [*raylet.children(recursive=True), raylet]


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have reaped it yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


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
        return str(process.name())
    return ""
