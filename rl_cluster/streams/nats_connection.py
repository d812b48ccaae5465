"""One connection to a NATS server: checked when it is made, and made again for ever.

Invariant: where TLS is wanted, no secret goes over a connection without it. What is wrong with
settings or server is an error at once; a server that is merely away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext

from rl_cluster.streams.nats_login import login_options, tls_options
from rl_cluster.streams.nats_settings import StreamSettings
from rl_cluster.streams.source import StreamError, StreamNotice, StreamUnreachable

_log = logging.getLogger(__name__)
# Between two attempts; a server that is killed is back within a second.
_RETRY_S = 0.2
# A frozen server is found out after three of them.
_PING_S = 10
_REFUSALS = ("authorization", "authentication", "revoked")


class Connection:
    """A connection of one event loop.

    Args:
      settings: of the server.
      name: that the server knows this client by.
      on_reconnect: awaited after each reconnection.
    """

    def __init__(
        self,
        settings: StreamSettings,
        name: str,
        on_reconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings, self._name, self._on_reconnect = settings, name, on_reconnect
        self.client = Client()
        self.js: JetStreamContext = self.client.jetstream(timeout=settings.answer_timeout_s)
        self.reconnects = 0
        self._trouble = ""
        self._notices: list[StreamNotice] = []
        self._refused: asyncio.Future[str] | None = None

    async def open(self) -> None:
        """Connect and check; StreamError, or StreamUnreachable after `connect_timeout_s`."""
        self._settings.check_valid()
        options = self._options()
        self._refused = asyncio.get_running_loop().create_future()
        attempt = asyncio.ensure_future(self.client.connect(**options))
        either: set[asyncio.Future[Any]] = {attempt, self._refused}
        timeout_s = self._settings.connect_timeout_s
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.done() or attempt.exception() is not None:
            await self._give_up(attempt)
        if problem := self._problem():
            await self.close()
            raise StreamError(problem)
        self._refused, self._trouble = None, ""

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty where there is one."""
        if self.client.is_connected:
            return ""
        return self._trouble or f"no connection to {self._settings.url}"

    def check_open(self) -> None:
        """Raise StreamError where the connection is over and will not be made again."""
        if self.client.is_closed:
            raise StreamError(f"the connection is over: {self.trouble}")

    def notify(self, notice: StreamNotice) -> None:
        """Keep a notice for `take_notices`."""
        self._notices.append(notice)

    def take_notices(self) -> list[StreamNotice]:
        """What happened since the last call."""
        notices, self._notices = self._notices, []
        return notices

    async def close(self) -> None:
        """Send what waits and disconnect."""
        await self.client.close()

    async def _give_up(self, attempt: asyncio.Future[None]) -> None:
        attempt.cancel()
        (outcome,) = await asyncio.gather(attempt, return_exceptions=True)
        await self.client.close()
        assert self._refused is not None
        if self._refused.done():
            raise StreamError(self._refused.result())
        if isinstance(outcome, Exception):
            self._trouble = _described(outcome)
        raise StreamUnreachable(
            f"{self._settings.url} did not answer within {self._settings.connect_timeout_s:g} s "
            f"({self._trouble or 'nothing came'}): is the server running, and stream.url right?"
        )

    def _problem(self) -> str:
        """What is wrong with the server that answers; empty: nothing."""
        wanted, limit = self._settings.max_payload_bytes, self.client.max_payload
        if limit < wanted:
            return (
                f"{self._settings.url} takes messages of at most {limit:,} bytes, but rovers' "
                f"messages and policies may have {wanted:,}: set `max_payload: {wanted}` in the "
                "server's configuration file (nats-server -c FILE) and restart it"
            )
        return self._without_tls()

    def _without_tls(self) -> str:
        # nats-py has no public word for it, and does without TLS wherever a server does.
        if self._settings.wants_tls and not self.client._server_info.get("tls_required"):
            return (
                f"{self._settings.url} offers no TLS, and stream.url or stream.tls_ca want it: no "
                "secret was sent; set `tls {...}` in the server's configuration"
            )
        return ""

    def _options(self) -> dict[str, Any]:
        return {
            "servers": self._settings.url,
            "name": self._name,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": _RETRY_S,
            "ping_interval": _PING_S,
            "error_cb": self._failed,
            "disconnected_cb": self._lost,
            "reconnected_cb": self._regained,
            **login_options(self._settings, self._without_tls),
            **tls_options(self._settings),
        }

    async def _failed(self, error: Exception) -> None:
        self._trouble = _described(error)
        _log.debug("%s: %s", self._settings.url, self._trouble)
        reason = _refusal(error, self._settings.url)
        if reason and self._refused is not None and not self._refused.done():
            self._refused.set_result(reason)

    async def _lost(self) -> None:
        if self._refused is None and not self.client.is_closed:
            _log.warning("no connection to %s: %s", self._settings.url, self.trouble)

    async def _regained(self) -> None:
        self.reconnects += 1
        if problem := self._problem():
            self._trouble = problem
            await self.client.close()
            return
        _log.warning("connected to %s again", self._settings.url)
        if self._on_reconnect is not None:
            await self._on_reconnect()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refusal(error: Exception, url: str) -> str:
    """Why trying again would not help; empty where it may."""
    text = str(error)
    if isinstance(error, ssl.SSLError):
        return (
            f"{url}: TLS failed: {text}: name the authority of the server's certificate in "
            "stream.tls_ca, and use the host name that it was made for"
        )
    if any(word in text.lower() for word in _REFUSALS):
        return (
            f"{url} refused us: {text}: check stream.user and password, token, nkey_seed or "
            "credentials against the server's configuration"
        )
    return text if "stream." in text else ""
