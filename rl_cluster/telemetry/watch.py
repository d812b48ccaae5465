"""The window for the person with the rover: a page on loopback that shows a fleet as it is.

Invariants: it answers on 127.0.0.1 only, to GET only, and only where the browser asked for this
host by a name of loopback, so that a page from elsewhere cannot read it. It reads the run's files
and writes none. A picture is looked up among the rovers that the reader named; what a request says
never becomes a path.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rl_cluster.telemetry.watch_files import read_files, view_file
from rl_cluster.telemetry.watch_page import CONTENT_SECURITY_POLICY, PAGE
from rl_cluster.telemetry.watch_view import view_of

HOST = "127.0.0.1"

_log = logging.getLogger(__name__)
_NAMES = (HOST, "localhost")
"""A tunnel's end on another machine has one of these names too, and a port of its own."""
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class WatchServer(ThreadingHTTPServer):
    """Serves the page of one fleet.

    Args:
      task_dir: RUN/TASK.
      port: 0: any that is free.

    Raises:
      OSError: the port is taken.
      OverflowError: there is no such port.
    """

    def __init__(self, task_dir: Path, port: int) -> None:
        self.task_dir = task_dir
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with one request; a browser that went away is nothing."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            _log.warning("a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: WatchServer
    server_version, sys_version = "rl-cluster", ""
    timeout = 10.0

    def do_GET(self) -> None:  # noqa: N802  (the library's name)
        """Answer with the page, what it shows, or a rover's view."""
        path = self.path.partition("?")[0]
        if self.headers.get("Host", "").partition(":")[0] not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "this page is for loopback")
        elif path == "/":
            self._send(PAGE.encode(), "text/html; charset=utf-8")
        elif path == "/status.json":
            view = view_of(read_files(self.server.task_dir, time.time()))
            self._send(json.dumps(view, allow_nan=False).encode(), "application/json")
        else:
            self._send_view(path)

    def end_headers(self) -> None:
        """Add the headers of every answer, of an error's too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests, one a second, off the terminal."""
        _log.debug(format, *args)

    def _send_view(self, path: str) -> None:
        task_dir = self.server.task_dir
        names = [rover["rover"] for rover in read_files(task_dir, time.time()).rovers]
        views = {f"/rovers/{quote(name, safe='')}.png": view_file(task_dir, name) for name in names}
        try:
            self._send(views[path].read_bytes(), "image/png")
        except (KeyError, FileNotFoundError):
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page or picture")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
