"""Experience from a NATS JetStream stream, by a durable pull consumer that acknowledges explicitly.

Invariant: that of `ExperienceSource`. The server remembers what was acknowledged; what it forgets
with a crash it delivers again. What cannot be read is copied to the quarantine, with reason and
hash, before it is given up.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import nats.errors
from nats.js import api

from rl_cluster.streams.nats_connection import Connection
from rl_cluster.streams.nats_pull import Puller
from rl_cluster.streams.nats_settings import MIB, StreamSettings
from rl_cluster.streams.nats_streams import ensure_consumer, ensure_stream, explained
from rl_cluster.streams.source import (
    Delivery,
    SourceStatus,
    StreamError,
    StreamNotice,
    StreamUnreachable,
)

_ACK, _PROGRESS, _NAK, _TERM = b"+ACK", b"+WPI", b"-NAK", b"+TERM"
_MEND_S = 1.0
_REASON_CHARS = 300
# A file store takes records of 32 MiB, headers and all, whatever the stream's limit is.
_MOST_BYTES = 32 * MIB - 4096


class NatsSource:
    """An `ExperienceSource` of one event loop.

    Args:
      settings: of the server, the stream and the consumer.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings, "rl-cluster reader", self._reconnected)
        self._puller: Puller | None = None
        self._ack_wait_s = settings.ack_wait_s
        self._only_subject = False
        self._last_position = 0
        self._delivered = self._redelivered = self._quarantined = self._expired = 0
        self._last_delivery = time.monotonic()

    @property
    def ack_wait_s(self) -> float:
        """Of the consumer as it is, which may differ from the settings."""
        return self._ack_wait_s

    async def open(self) -> None:
        """Connect, make what is missing and begin to pull; StreamError, StreamUnreachable."""
        await self._connection.open()
        settings = self._settings
        try:
            stream, consumer = await self._ensure()
            await ensure_stream(self._connection, settings.quarantine)
        except StreamError:
            await self._connection.close()
            raise
        config, state = stream.config, stream.state
        assert config.name is not None
        self._only_subject = config.subjects == [settings.experience.subjects[0]]
        read = consumer.delivered.stream_seq if consumer.delivered else 0
        self._last_position = read or max(0, state.first_seq - 1)
        self._last_delivery = time.monotonic()
        self._puller = Puller(
            self._connection.client,
            config.name,
            settings.durable,
            min(settings.max_in_flight, consumer.config.max_ack_pending or settings.max_in_flight),
            settings.buffer_bytes,
        )
        await self._puller.start()

    async def fetch(self, most: int, timeout_s: float) -> list[Delivery]:
        """See `ExperienceSource`."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._connection.check_open()
            puller, left = self._pulling, deadline - time.monotonic()
            taken = await puller.take(most, max(0.0, left))
            if taken or left <= 0:
                break
            if puller.trouble:
                await self._mend(left)
        self._count(taken)
        return taken

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `ExperienceSource`; nothing is waited for."""
        await self._answer(deliveries, _ACK)

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        """See `ExperienceSource`."""
        await self._answer([*deliveries, *self._pulling.buffered], _PROGRESS)

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """See `ExperienceSource`. A payload that leaves no room for headers loses its end."""
        digest = hashlib.sha256(delivery.payload).hexdigest()
        printable = "".join(c if " " <= c <= "~" else "?" for c in reason)[:_REASON_CHARS]
        headers = {
            "Quarantine-Reason": printable,
            "Quarantine-Sha256": digest,
            "Quarantine-Position": str(delivery.position),
            "Quarantine-Bytes": str(len(delivery.payload)),
            "Nats-Msg-Id": f"{delivery.position}-{digest}",
        }
        payload = delivery.payload[:_MOST_BYTES]
        subject = self._settings.quarantine.subjects[0]
        with explained(f"quarantine of message {delivery.position}", self._connection):
            await self._connection.js.publish(subject, payload, headers=headers)
        await self._answer([delivery], _TERM)
        self._quarantined += 1

    def status(self) -> SourceStatus:
        """Where it stands."""
        puller = self._puller
        return SourceStatus(
            connected=self._connection.client.is_connected,
            reconnects=self._connection.reconnects,
            delivered=self._delivered,
            redelivered=self._redelivered,
            quarantined=self._quarantined,
            buffered=len(puller) if puller else 0,
            buffered_bytes=puller.nbytes if puller else 0,
            pending=puller.pending if puller else 0,
            expired=self._expired,
            silent_s=time.monotonic() - self._last_delivery,
            trouble=self._connection.trouble or (puller.trouble if puller else ""),
        )

    def take_notices(self) -> list[StreamNotice]:
        """What happened since the last call."""
        return self._connection.take_notices()

    async def close(self, owed: Sequence[Delivery] = ()) -> None:
        """See `ExperienceSource`."""
        if self._puller is not None and self._connection.client.is_connected:
            # First, or the server would deliver them to this reader again.
            await self._puller.stop()
            await self._answer([*owed, *self._puller.buffered], _NAK)
        await self._connection.close()

    @property
    def _pulling(self) -> Puller:
        if self._puller is None:
            raise StreamError("the source is not open: await open() first")
        return self._puller

    async def _ensure(self) -> tuple[api.StreamInfo, api.ConsumerInfo]:
        stream = await ensure_stream(self._connection, self._settings.experience)
        assert stream.config.name is not None
        consumer = await ensure_consumer(self._connection, self._settings, stream.config.name)
        self._ack_wait_s = consumer.config.ack_wait or self._settings.ack_wait_s
        return stream, consumer

    async def _mend(self, left_s: float) -> None:
        """Make again what somebody deleted, or wait for a server that is still starting."""
        await asyncio.sleep(min(_MEND_S, left_s))
        try:
            await self._ensure()
        except StreamUnreachable as error:
            self._pulling.trouble = str(error)
        else:
            await self._pulling.restart()

    async def _reconnected(self) -> None:
        if self._puller is not None:
            await self._puller.restart()

    async def _answer(self, deliveries: Sequence[Delivery], answer: bytes) -> None:
        self._connection.check_open()
        try:
            for delivery in deliveries:
                await self._connection.client.publish(delivery.token, answer)
        except nats.errors.OutboundBufferLimitError:
            return  # the server is away: it delivers again what it does not hear of

    def _count(self, taken: Sequence[Delivery]) -> None:
        for delivery in taken:
            if delivery.redelivered == 0:
                gap = delivery.position - self._last_position - 1
                self._expired += max(0, gap) if self._only_subject else 0
                self._last_position = max(self._last_position, delivery.position)
        self._delivered += len(taken)
        self._redelivered += sum(delivery.redelivered > 0 for delivery in taken)
        if taken:
            self._last_delivery = time.monotonic()
