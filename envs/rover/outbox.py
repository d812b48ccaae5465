"""What a rover recorded and the server has not acknowledged yet.

Invariant: a message leaves only by `acknowledge` or `refuse`; messages are told in their order.
When it is full the rover stands still: a rover that cannot keep what it sees learns nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from envs.rover.wire import Message


class Outbox:
    """Messages of one rover, for one event loop.

    Args:
        limit_bytes: `put` waits while more would be held; one message always fits.

    Attributes:
        acknowledged, refused: messages that left, by the reason.
        held_bytes: of the messages held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.acknowledged = 0
        self.refused = 0
        self._limit_bytes = limit_bytes
        self._held: dict[int, Message] = {}
        self.held_bytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    async def put(self, message: Message) -> None:
        """Hold a message; waits for room until `close`."""
        nbytes = len(message.body)
        await self._until(lambda: self._has_room(nbytes))
        self._held[message.sequence] = message
        self.held_bytes += nbytes
        self._tell()

    def _has_room(self, nbytes: int) -> bool:
        return self._closed or not self._held or self.held_bytes + nbytes <= self._limit_bytes

    def close(self) -> None:
        """The rover stops: what it still has to say is taken without waiting for room."""
        self._closed = True
        self._tell()

    async def next(self, after: int) -> Message:
        """The first message held whose sequence number is above `after`; waits for it."""
        await self._until(lambda: next(reversed(self._held), -1) > after)
        return next(held for sequence, held in self._held.items() if sequence > after)

    def acknowledge(self, message: Message) -> None:
        """The server has it."""
        self._drop(message)
        self.acknowledged += 1

    def refuse(self, message: Message) -> None:
        """The server will never take it."""
        self._drop(message)
        self.refused += 1

    def _drop(self, message: Message) -> None:
        del self._held[message.sequence]
        self.held_bytes -= len(message.body)
        self._tell()

    async def drained(self) -> None:
        """Wait until nothing is held."""
        await self._until(lambda: not self._held)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
