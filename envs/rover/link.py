"""A rover's line to the NATS server: experience out, policies in, over any number of connections.

Invariants: a message is held until JetStream acknowledged it, and sent again, under the same
message id, on every new connection until then. A connection is given up as soon as anything on it
fails or is late, and the next one starts over like the first: there is one path for a late
server, a restarted one and a frozen one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from envs.rover.outbox import Outbox
from envs.rover.streams import ensure_streams
from envs.rover.subscriber import PolicySubscriber
from envs.rover.wire import EXPERIENCE, MAX_PAYLOAD, Message

ANSWER_S = 30.0
"""An answer later than this means that the connection is dead."""
_IN_FLIGHT_BYTES = 4 * 2**20
"""Sent and not acknowledged, at most: what a slow line carries well within ANSWER_S."""
_HEARTBEAT_S = 5.0
_CLOSE_S = 5.0
_PAUSE_S, _MAX_PAUSE_S = 0.2, 2.0  # Between connections.
_MESSAGE_TOO_LARGE = 10054  # JetStream's code: over the stream's max_msg_size.
# Beyond it the client waits for the socket in a way that cannot be cancelled.
_CLIENT_BUFFER_BYTES = 2 * MAX_PAYLOAD

_log = logging.getLogger(__name__)


class PayloadLimitError(RuntimeError):
    """The server lets through less than the protocol needs; says which setting to change."""


class Link:
    """Keeps one rover connected.

    Args:
        connection: arguments of `nats.connect`: servers, credentials, TLS.
        outbox: what to send.
        policies: what takes the policies; None for a rover that runs none.

    Attributes:
        connections: made so far.
        sent: messages, each sending counted.
    """

    def __init__(
        self, connection: Mapping[str, Any], outbox: Outbox, policies: PolicySubscriber | None
    ) -> None:
        self.connections = 0
        self.sent = 0
        self._arguments = connection
        self._outbox = outbox
        self._policies = policies
        self._reasons = ""

    async def run(self) -> None:
        """Connect, again and again, until cancelled.

        Raises:
            ExceptionGroup: of a PayloadLimitError on the first connection. Later, the server may
                be in the middle of being set up anew: it is tried again.
        """
        pause_s = _PAUSE_S
        while True:
            before = self._outbox.acknowledged
            try:
                async with _connection(self._arguments) as (client, closed):
                    self.connections += 1
                    await self._talk(client, closed)
            except* (OSError, TimeoutError, NatsError, PayloadLimitError) as errors:
                if self.connections == 1 and errors.subgroup(PayloadLimitError):
                    raise
                if self._outbox.acknowledged > before:
                    pause_s, self._reasons = _PAUSE_S, ""
                self._report(errors)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _report(self, errors: BaseExceptionGroup[Exception]) -> None:
        """Log why the connection ended, once as long as nothing gets through."""
        reasons = ", ".join(sorted({_reason(error) for error in _leaves(errors)}))
        if reasons != self._reasons:
            _log.warning("no connection: %s; %d messages held", reasons, len(self._outbox))
        self._reasons = reasons

    async def _talk(self, client: Client, closed: asyncio.Event) -> None:
        """Everything that goes over one connection, until it ends with an error."""
        if client.max_payload < MAX_PAYLOAD:
            raise PayloadLimitError(
                f"the NATS server takes messages of at most {client.max_payload} bytes and rovers "
                f"need {MAX_PAYLOAD}: set max_payload: 64MB in its configuration and restart it"
            )
        jetstream = client.jetstream(timeout=ANSWER_S)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_watch(client, closed))
            await ensure_streams(jetstream)
            _log.info("connected, %d messages held", len(self._outbox))
            if self._policies is not None:
                tasks.create_task(self._policies.follow(client, jetstream))
            await self._send(jetstream, tasks)

    async def _send(self, jetstream: JetStreamContext, tasks: asyncio.TaskGroup) -> None:
        window = _Window(_IN_FLIGHT_BYTES)
        sequence = -1
        while True:
            message = await self._outbox.next(after=sequence)
            sequence = message.sequence
            await window.enter(len(message.body))
            tasks.create_task(self._deliver(jetstream, message, window))

    async def _deliver(
        self, jetstream: JetStreamContext, message: Message, window: _Window
    ) -> None:
        self.sent += 1
        headers = {"Nats-Msg-Id": message.message_id}
        payload = message.payload(time.time())
        try:
            await jetstream.publish(EXPERIENCE, payload, timeout=ANSWER_S, headers=headers)
        except APIError as error:
            if error.err_code != _MESSAGE_TOO_LARGE:
                raise
            _log.error("%s is lost, %d bytes: %s", message.message_id, len(payload), error)
            self._outbox.refuse(message)
        else:
            self._outbox.acknowledge(message)
        window.leave(len(message.body))


class _Window:
    """Lets so many bytes be on their way at once, or one message of any size."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, nbytes: int) -> None:
        while self._used_bytes and self._used_bytes + nbytes > self._limit_bytes:
            self._freed.clear()
            await self._freed.wait()
        self._used_bytes += nbytes

    def leave(self, nbytes: int) -> None:
        self._used_bytes -= nbytes
        self._freed.set()


@asynccontextmanager
async def _connection(
    arguments: Mapping[str, Any],
) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A client that connects once, and an event that tells when its connection is gone."""
    client, closed = Client(), asyncio.Event()

    async def on_closed() -> None:
        closed.set()

    try:
        await client.connect(
            **arguments,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(ANSWER_S),
            closed_cb=on_closed,
            error_cb=_note,
            pending_size=_CLIENT_BUFFER_BYTES,
        )
        yield client, closed
    except BaseException:
        _abort(client)
        raise
    finally:
        with suppress(OSError, TimeoutError, NatsError):
            await asyncio.wait_for(client.close(), _CLOSE_S)


async def _watch(client: Client, closed: asyncio.Event) -> None:
    """ConnectionError or the client's TimeoutError as soon as the connection is gone or frozen."""
    while not closed.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), _HEARTBEAT_S)
            break
        await client.flush(timeout=int(ANSWER_S))
    raise ConnectionError("the server closed the connection")


async def _note(error: Exception) -> None:
    # The connection ends with it, which is reported.
    _log.debug("client: %r", error)


def _abort(client: Client) -> None:
    """Drop what is still to be written: a frozen server takes none of it, and close() waits."""
    writer: asyncio.StreamWriter | None = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _leaves(errors: BaseException) -> list[BaseException]:
    if not isinstance(errors, BaseExceptionGroup):
        return [errors]
    return [leaf for error in errors.exceptions for leaf in _leaves(error)]
