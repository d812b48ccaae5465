"""A Ray cluster that takes jobs, and the commands that people have for them: `ray job …`.

Invariant: its job server listens on loopback and wants a token of the cluster's own; when it ends,
no process and no file of it is left, those of its jobs and of their runs included.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from chaos.raylets import RayCluster

_BIN = Path(sys.executable).parent
_FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class JobCluster(RayCluster):
    """Nodes, one with Ray's job server; a context manager.

    Args:
      token: file that is made for its token.
      nodes: how many.
    """

    def __init__(self, token: Path, nodes: int = 1) -> None:
        # Ray makes one only where no path is named.
        self._token = secrets.token_hex(32)
        token.touch(mode=0o600)
        token.write_text(self._token)
        path = f"{_BIN}:{os.environ['PATH']}"  # as in an activated environment
        super().__init__(nodes, {"RAY_AUTH_TOKEN_PATH": str(token), "PATH": path})
        self.server = f"http://127.0.0.1:{_free_port()}"

    def _start(self, *arguments: str) -> None:
        heads = (
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.server.rpartition(':')[2]}",
            f"--ray-client-server-port={_free_port()}",
        )
        agent = f"--dashboard-agent-listen-port={_free_port()}"
        super()._start(*arguments, agent, *(heads if "--head" in arguments else ()))

    @property
    def client_environment(self) -> dict[str, str]:
        """What Ray's clients need to find it, and to get in."""
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        return {"RAY_ADDRESS": self.server, **{name: self._environment[name] for name in names}}

    def submit(self, name: str, working_dir: Path, *entrypoint: object) -> None:
        """Submit a job, and do not wait for it."""
        self.job("submit", "--no-wait", "--submission-id", name, "--working-dir", working_dir,
                 "--", *entrypoint)  # fmt: skip

    def log(self, name: str) -> str:
        """What a job has printed."""
        return str(self._ask(f"{name}/logs")["logs"])

    def end_of(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Wait until a job is over; return what the server says of it: status, message, …"""
        deadline_s = time.monotonic() + timeout_s
        while (said := self._ask(name))["status"] not in _FINAL:
            assert time.monotonic() < deadline_s, f"not over: {said}\n{self.log(name)}"
            time.sleep(0.3)
        return said

    def _ask(self, path: str) -> dict[str, Any]:
        """Without the command, which takes seconds to start."""
        request = urllib.request.Request(
            f"{self.server}/api/jobs/{path}", headers={"Authorization": f"Bearer {self._token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            said: dict[str, Any] = json.load(answer)
        return said

    def job(self, verb: str, *arguments: object) -> str:
        """Run `ray job VERB ARGUMENTS` to its end; return what it printed."""
        done = subprocess.run(
            [_BIN / "ray", "job", verb, "--address", self.server, *map(str, arguments)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
