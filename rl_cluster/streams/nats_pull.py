"""Messages pulled from a JetStream consumer ahead of being fetched, within bounds.

Invariant: at most one request is open at the server, and it asks for no more messages and bytes
than the buffer has room for; one message larger than that room is asked for alone. So memory is
bounded by the buffer and one message, and the next messages are on their way while earlier ones are
worked on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from rl_cluster.streams.source import Delivery

_EXPIRES_S = 30.0
_HEARTBEAT_S = 2.0
_LAPSE_S = 5.0
# What ends a request in the course of things; any other status is trouble.
_USUAL = ("Request Timeout", "Batch Completed", "No Messages", "Leadership Change")
_TOO_LARGE = "Message Size Exceeds MaxBytes"
_NO_LIMIT = 0


class Puller:
    """A buffer in front of one durable pull consumer.

    Args:
      client: connected. stream, durable: the consumer. messages, nbytes: room of the buffer.
    """

    def __init__(
        self, client: Client, stream: str, durable: str, messages: int, nbytes: int
    ) -> None:
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._room, self._room_bytes = messages, nbytes
        self._inbox = client.new_inbox()
        self._buffer: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._request, self._missing, self._came = 0, 0, 0
        self._alone = False
        self._heard = 0.0
        self._subscription: Subscription | None = None
        self.nbytes = 0
        self.pending = 0
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def buffered(self) -> list[Delivery]:
        """What was delivered and not taken yet."""
        return list(self._buffer)

    async def start(self) -> None:
        """Subscribe, and ask for the first messages."""
        self._subscription = await self._client.subscribe(
            f"{self._inbox}.*",
            cb=self._arrived,
            pending_msgs_limit=_NO_LIMIT,
            pending_bytes_limit=_NO_LIMIT,
        )
        await self.restart()

    async def stop(self) -> None:
        """Have nothing delivered any more."""
        self.trouble = "stopped"
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def restart(self) -> None:
        """Forget the open request, whose answer will not come, and ask again."""
        self._missing, self.trouble = 0, ""
        await self._ask()

    async def take(self, most: int, timeout_s: float) -> list[Delivery]:
        """Up to `most`; none once the time is over or there is trouble."""
        deadline = time.monotonic() + timeout_s
        while not self._buffer and not self.trouble:
            await self._ask()
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _HEARTBEAT_S)):
                    await self._changed.wait()
        taken = [self._buffer.popleft() for _ in range(min(most, len(self._buffer)))]
        self.nbytes -= sum(len(delivery.payload) for delivery in taken)
        await self._ask()
        return taken

    async def _ask(self) -> None:
        """Send a request where none is open and at least half of the room is free."""
        if self._missing and time.monotonic() - self._heard < _LAPSE_S:
            return
        room, room_bytes = self._room - len(self._buffer), self._room_bytes - self.nbytes
        if 2 * room < self._room or 2 * room_bytes < self._room_bytes or self.trouble:
            return
        if not self._client.is_connected:
            return
        self._request += 1
        self._missing, self._came, self._heard = (1 if self._alone else room), 0, time.monotonic()
        request = {
            "batch": self._missing,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        if not self._alone:
            request["max_bytes"] = room_bytes
        reply = f"{self._inbox}.{self._request}"
        await self._client.publish(self._subject, json.dumps(request).encode(), reply)

    async def _arrived(self, msg: Msg) -> None:
        self._heard = time.monotonic()
        if msg.reply:
            self._keep(msg)
        elif msg.subject.endswith(f".{self._request}"):
            self._end(msg.headers or {})
        if not self._missing:
            await self._ask()
        self._changed.set()

    def _keep(self, msg: Msg) -> None:
        metadata = msg.metadata
        self._buffer.append(
            Delivery(
                payload=msg.data,
                message_id=(msg.headers or {}).get("Nats-Msg-Id"),
                position=metadata.sequence.stream,
                redelivered=metadata.num_delivered - 1,
                published_s=metadata.timestamp.timestamp(),
                token=msg.reply,
            )
        )
        self.nbytes += len(msg.data)
        self.pending = metadata.num_pending
        self._missing = max(0, self._missing - 1)
        self._came += 1
        self._alone = False

    def _end(self, headers: dict[str, str]) -> None:
        status, reason = headers.get("Status"), headers.get("Description", "")
        if status == "100":  # it is still open
            return
        self._missing = 0
        if _TOO_LARGE in reason:
            self._alone = not self._came
        elif not any(usual in reason for usual in _USUAL):
            self.trouble = f"the server ends the request for messages: {status} {reason}".strip()
