"""Receipts for experience from outside: a reader hears which blocks are on disk.

Invariant: a block's receipt is sent after the journal has it, never before; one that cannot be
written yet is owed until it can. A receipt that is lost with its reader does no harm: the message
comes again, and is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rl_cluster.cluster.actors import Actor

_FLUSH_TIMEOUT_S = 5.0

Flush = Callable[[float], Awaitable[bool]]
"""Waits until all blocks so far are on disk; whether they are."""


class Receipts:
    """What readers are owed.

    Args:
      flush: of the journal.
    """

    def __init__(self, flush: Flush) -> None:
        self._flush = flush
        self._owed: dict[Actor, list[str]] = {}
        self._any = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def owe(self, reader: Actor, messages: list[str]) -> None:
        """Tell a reader that its blocks are kept, as soon as they are."""
        if not messages:
            return
        self._owed.setdefault(reader, []).extend(messages)
        self._any.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            await self._any.wait()
            self._any.clear()
            owed, self._owed = self._owed, {}
            while not await self._flush(_FLUSH_TIMEOUT_S):
                await asyncio.sleep(1.0)
            for reader, messages in owed.items():
                reader.stored.remote(messages)
