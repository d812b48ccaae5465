"""A real nats-server on a free loopback port, with JetStream, that a test may kill and restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import nats
from nats.aio.client import Client

BINARY = Path(sys.executable).parent / "nats-server"
MIB = 2**20


class NatsServer:
    """One nats-server process; the port and the streams outlive kill and restart.

    Args:
        directory: an existing directory for the configuration, the log and the streams.
        max_payload: the server's limit for one message, bytes.
        extra: lines for the end of the configuration (`authorization {...}`, `tls {...}`).
    """

    def __init__(
        self, directory: Path, *, max_payload: int = 64 * MIB, extra: Sequence[str] = ()
    ) -> None:
        self.port = _free_port()
        self.log = directory / "nats.log"
        self._directory = directory
        self._config = directory / "nats.conf"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._configure(max_payload)

    def _configure(self, max_payload: int) -> None:
        lines = [
            f"listen: 127.0.0.1:{self.port}",
            f"max_payload: {max_payload}",
            # A limit of its own: the streams reserve more than some disks have free.
            f'jetstream {{ store_dir: "{self._directory / "store"}", max_file_store: 64GB }}',
            *self._extra,
        ]
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, or start again on the same port; returns when the server accepts connections."""
        assert self._process is None, "the server runs already"
        with self.log.open("ab") as log:
            command = [str(BINARY), "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"nats-server did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """A clean end; nothing if the server is down."""
        self._end(signal.SIGTERM)

    def set_max_payload(self, max_payload: int) -> None:
        """Restart with another limit for one message, bytes."""
        self.stop()
        self._configure(max_payload)
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is down"
        os.kill(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    async def client(self) -> Client:
        """A plain client of this server; it does not reconnect."""
        return await nats.connect(self.url, allow_reconnect=False, pending_size=64 * MIB)

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
