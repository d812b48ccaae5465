"""A real Prometheus on loopback, started as `rl-cluster dashboards` says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rl_cluster.telemetry.provisioning import PROMETHEUS

_PATH = f"{Path(sys.executable).parents[1]}/debian/usr/bin:{os.environ.get('PATH', '')}"


def program(name: str) -> str:
    """A program of Debian's package; the test is skipped where it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"no {name} here: tests/setup_debian.sh {Path(sys.executable).parent}")
    return found


class PrometheusServer:
    """Prometheus as a person starts it, but on a free port; a context manager."""

    def __init__(self, command_line: str) -> None:
        name, *arguments = shlex.split(command_line)
        self._address = f"127.0.0.1:{_free_port()}"
        moved = [argument.replace(PROMETHEUS, self._address) for argument in arguments]
        assert moved != arguments, command_line
        self._command = [program(name), *moved]

    def __enter__(self) -> PrometheusServer:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def until_ready(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            assert self._process.poll() is None, self._process.communicate()[0]
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline_s, "Prometheus did not start"
                time.sleep(0.2)

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that an expression has now."""
        answer = self.ask("query", query=expression)
        return [(found["metric"], float(found["value"][1])) for found in answer["result"]]

    def ask(self, what: str, **arguments: str) -> Any:
        """The data of an answer of Prometheus's HTTP interface."""
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(
            f"http://{self._address}/api/v1/{what}?{query}", timeout=10
        ) as reply:
            return json.load(reply)["data"]


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
