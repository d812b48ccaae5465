"""A field on one machine: a server of one's own and simulated rovers, as processes of their own.

Invariant: what dies is started again, at the same address, so that rovers from elsewhere find it,
and in rooms that nobody drove before; nothing of it outlives `close`, and what outlives a field
that was killed is ended by the next one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rl_cluster.streams.server import EmbeddedServer, end_orphans
from rl_cluster.streams.source import StreamNotice

_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
_CLOSE_S = 5.0
_SEEDS = 1 << 30


@dataclass
class _Rover:
    name: str
    number: int
    command: tuple[str, ...]
    """Without its pace, and its seed, which each start has anew."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    due_s: float = field(default=0.0)


class Field:
    """A server and the rovers that drive at it.

    Args:
      store: directory of the server's streams; kept over restarts.
      port: that the server listens at on loopback; 0: any.
      simulator: module of a rover's program.
      rovers: how many. hz: steps a second of each; 0: as fast as it can. seed: of its rooms.
      log: what rovers print is appended there.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Path,
        port: int,
        simulator: str,
        rovers: int,
        hz: float,
        seed: int,
        log: Path,
        clock: Callable[[], float],
    ) -> None:
        self._server = EmbeddedServer(store, port)
        self._server.start()
        self._log, self._clock, self._seed, self._hz = log, clock, seed, hz
        self._rovers = [
            _Rover(
                f"sim-{i}",
                i,
                (sys.executable, "-m", simulator, "--url", self.url, "--rover-id", f"sim-{i}"),
            )
            for i in range(rovers)
        ]
        for rover in self._rovers:
            end_orphans(list(rover.command))
        self.look()

    @property
    def url(self) -> str:
        """Where rovers reach the server."""
        return self._server.url

    @property
    def driving(self) -> int:
        """Rovers that live."""
        return sum(r.process is not None and r.process.poll() is None for r in self._rovers)

    def look(self) -> list[StreamNotice]:
        """Start what is not there; say what had died."""
        notices = []
        if not self._server.is_alive:
            cause = f"the server at {self.url} died"
            self._server.start()
            notices.append(StreamNotice("server_restarted", cause, "started again"))
        for rover in self._rovers:
            if rover.process is not None and rover.process.poll() is None:
                continue
            if rover.process is not None:
                notices.append(self._bury(rover))
            if self._clock() >= rover.due_s:
                self._start(rover)
        return notices

    def close(self) -> None:
        """End rovers, which send what they hold first, and the server."""
        live = [r.process for r in self._rovers if r.process is not None]
        for process in live:
            process.terminate()
        for process in live:
            try:
                process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._server.stop()

    def _bury(self, rover: _Rover) -> StreamNotice:
        assert rover.process is not None
        wait_s = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** (rover.starts - 1))
        rover.due_s = self._clock() + wait_s
        cause = f"simulated rover {rover.name} ended with {rover.process.returncode}"
        rover.process = None
        return StreamNotice("rover_restarted", cause, f"started again in {wait_s:g} s")

    def _start(self, rover: _Rover) -> None:
        life = np.random.SeedSequence([self._seed, rover.number, rover.starts])
        seed = int(life.generate_state(1)[0]) % _SEEDS
        with self._log.open("ab") as log:
            rover.process = subprocess.Popen(
                [*rover.command, "--hz", f"{self._hz:g}", "--seed", str(seed)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        rover.starts += 1
