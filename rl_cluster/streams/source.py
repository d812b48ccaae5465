"""Where experience comes from, whatever carries it: deliveries that stay owed until acknowledged.

Invariant: a message that was delivered and neither acknowledged nor quarantined is delivered again,
to this reader or to the next one. So delivery is at least once, and exactly once is made where the
blocks are kept, by the messages' identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class StreamError(RuntimeError):
    """A stream that cannot be used; the message names what is wrong, the setting and the remedy."""


class StreamUnreachable(StreamError):
    """Nothing answers at the address, or it stopped answering: worth trying again."""


@dataclass(frozen=True)
class StreamNotice:
    """Something that a person may want to know of: what was found, and what is done about it."""

    kind: str
    cause: str
    action: str


@dataclass(frozen=True)
class Delivery:
    """One message, handed out once or again."""

    payload: bytes
    message_id: str | None
    """What its sender called it; None where it was sent without a name."""
    position: int
    """Its number in the stream, >= 1; the same for every delivery of it."""
    redelivered: int
    """How often it was delivered before."""
    published_s: float
    """When the stream took it, unix seconds by the server's clock."""
    token: Any
    """What the source knows it by."""


@dataclass(frozen=True)
class SourceStatus:
    """Where a source stands; counts are since it was opened."""

    connected: bool
    reconnects: int
    delivered: int
    """Messages handed out, again or not."""
    redelivered: int
    """Of those, the ones that had been delivered before."""
    quarantined: int
    buffered: int
    """Messages that are here and were not fetched yet."""
    buffered_bytes: int
    pending: int
    """Messages that wait at the server, as of the last delivery."""
    expired: int
    """Messages that the stream's limits removed before they could be read."""
    silent_s: float
    """Seconds since anything was delivered; since the opening where nothing was."""
    trouble: str
    """Why nothing comes, as far as the source knows; empty: no message was published."""


class ExperienceSource(Protocol):
    """A stream of messages, used by one event loop."""

    @property
    def ack_wait_s(self) -> float:
        """Seconds after which a delivery that nobody acknowledged or kept is made again."""

    async def open(self) -> None:
        """Connect; StreamError where settings or server are wrong, StreamUnreachable in time."""

    async def fetch(self, most: int, timeout_s: float) -> list[Delivery]:
        """1 to `most` messages in the stream's order; none when none came in time.

        StreamError once the stream is of no more use, such as after its permission was taken away.
        """

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Never deliver these again. An acknowledgement can be lost with the server."""

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        """These, and what was not fetched yet, are still worked on: wait `ack_wait_s` anew."""

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Keep a copy with the reason for people to look at, then never deliver it again.

        StreamError where the copy could not be kept: the message stays owed.
        """

    def status(self) -> SourceStatus:
        """Where it stands."""

    def take_notices(self) -> list[StreamNotice]:
        """What happened since the last call."""

    async def close(self, owed: Sequence[Delivery] = ()) -> None:
        """Disconnect; these, and what was not fetched, are delivered to the next reader at once."""
