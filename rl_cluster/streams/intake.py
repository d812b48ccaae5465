"""From messages to blocks: fetched ahead, decoded beside the event loop, owed until stored.

Invariant: a message is acknowledged only when all of its blocks are stored, or it has none; what is
malformed is quarantined, and stays owed while that fails. Messages are judged in the stream's
order. What is under way is bounded, and told to the source as still worked on, though not for ever:
blocks that nobody stored within a stated time are delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rl_cluster.replay.block import Block
from rl_cluster.streams.codec import Experience, MalformedMessage
from rl_cluster.streams.cutting import cut
from rl_cluster.streams.fleet import Fleet
from rl_cluster.streams.identity import identity_of, source_of
from rl_cluster.streams.source import (
    Delivery,
    ExperienceSource,
    SourceStatus,
    StreamError,
)

_log = logging.getLogger(__name__)
_FETCH_S = 1.0
_NO_POLICY = -1


@dataclass(frozen=True)
class IntakeSettings:
    """How much may be under way."""

    block_length: int
    """Core rows of a block."""
    max_in_flight: int = 64
    """Messages that are not acknowledged, handed out or not."""
    ready_messages: int = 8
    """Messages decoded ahead of being collected; each may take some ten megabytes."""
    decode_threads: int = 2
    max_deliveries: int = 100
    """A message that was delivered this often and never stored is quarantined."""
    store_patience_s: float = 300.0
    """Seconds after which blocks that were handed out and not stored are delivered again."""


@dataclass(frozen=True)
class IntakeStatus:
    """Where an intake stands; counts are since it was opened."""

    source: SourceStatus
    messages: int
    """That were decoded, again or not."""
    blocks: int
    malformed: int
    over_quota: int
    """Messages that were acknowledged and not learned from."""
    without_blocks: int
    """Messages that had no training step with a known result, such as evaluation."""
    given_up: int
    """Messages that were handed out and not stored in time."""
    in_flight: int
    """Messages that are not acknowledged."""
    ready_blocks: int
    newest_published_s: float | None
    """When the newest decoded message was published, unix seconds by the server's clock."""


_Decoded = tuple[str, Experience]
"""A message's identity, and what it holds."""


@dataclass
class _Held:
    """A message from its delivery to its acknowledgement."""

    delivery: Delivery
    """Without its payload."""
    handed_out_s: float | None = None
    missing: set[str] = field(default_factory=set)
    """Names of its blocks that are not stored."""


class Intake:
    """Messages of one source, for one event loop.

    Args:
      source: not yet open.
      decode: of a payload; called in threads; MalformedMessage where it cannot be read.
      fleet: counts, and says what may be learned from.
      settings: bounds.
    """

    def __init__(
        self,
        source: ExperienceSource,
        decode: Callable[[bytes], Experience],
        fleet: Fleet,
        settings: IntakeSettings,
    ) -> None:
        self._source, self._decode, self._fleet = source, decode, fleet
        self._settings = settings
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._cutter = ThreadPoolExecutor(1, "cut")
        self._held: dict[int, _Held] = {}
        self._names: dict[str, list[_Held]] = {}
        self._decoding: deque[tuple[_Held, Delivery, asyncio.Future[_Decoded]]] = deque()
        self._ready: deque[Block] = deque()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._quarantines: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._messages = self._blocks = self._malformed = 0
        self._over_quota = self._without_blocks = self._given_up = 0
        self._newest_published_s: float | None = None

    async def open(self) -> None:
        """Open the source and begin to read; StreamError, StreamUnreachable."""
        await self._source.open()
        work = (self._read(), self._judge(), self._keep())
        self._tasks = [asyncio.create_task(self._run(each)) for each in work]

    async def collect(self, most: int, timeout_s: float) -> list[Block]:
        """Up to `most` blocks in the stream's order; none when none came in time.

        StreamError once the source is of no more use.
        """
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self._ready or self._failure)
            if not self._ready and self._failure is not None:
                raise self._failure
            blocks = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._changed.notify_all()
        for block in blocks:
            for held in self._names.get(block.message, ()):
                held.handed_out_s = time.monotonic()
        return blocks

    async def stored(self, names: Iterable[str]) -> None:
        """Acknowledge the messages that these blocks (`Block.message`) were the last missing of.

        A block that a replay refused because it has it already is stored as well.
        """
        done = []
        for name in names:
            for held in self._names.pop(name, ()):
                held.missing.discard(name)
                if not held.missing:
                    done.append(held)
        await self._acknowledge(done)

    def status(self) -> IntakeStatus:
        """Where it stands."""
        return IntakeStatus(
            source=self._source.status(),
            messages=self._messages,
            blocks=self._blocks,
            malformed=self._malformed,
            over_quota=self._over_quota,
            without_blocks=self._without_blocks,
            given_up=self._given_up,
            in_flight=len(self._held),
            ready_blocks=len(self._ready),
            newest_published_s=self._newest_published_s,
        )

    async def close(self) -> None:
        """Stop; what is owed is delivered to the next reader at once."""
        tasks = [*self._tasks, *self._quarantines]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._decoders, self._cutter):
            pool.shutdown(wait=False, cancel_futures=True)
        await self._source.close([held.delivery for held in self._held.values()])

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - task boundary; `collect` raises it
            if not isinstance(error, StreamError):
                _log.exception("the intake ends")
            self._failure = error
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_until(self, condition: Callable[[], object]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _read(self) -> None:
        while True:
            await self._wait_until(lambda: self._room > 0)
            for delivery in await self._source.fetch(self._room, _FETCH_S):
                self._admit(delivery)
            await self._notify()

    @property
    def _room(self) -> int:
        """Messages that may be fetched now."""
        ready = {block.message.rpartition("#")[0] for block in self._ready}
        ahead = len(self._decoding) + len(ready)
        settings = self._settings
        return min(settings.ready_messages - ahead, settings.max_in_flight - len(self._held))

    def _admit(self, delivery: Delivery) -> None:
        bare = replace(delivery, payload=b"")
        if known := self._held.get(delivery.position):
            known.delivery = bare  # it came again while it is worked on: answer to the newer one
            return
        held = self._held[delivery.position] = _Held(bare)
        if delivery.redelivered >= self._settings.max_deliveries:
            reason = f"delivered {delivery.redelivered + 1} times and never stored"
            self._put_away(held, delivery, reason)
            return
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._decoders, self._decoded, delivery)
        self._decoding.append((held, delivery, future))

    def _decoded(self, delivery: Delivery) -> _Decoded:
        experience = self._decode(delivery.payload)
        message = identity_of(delivery.payload, delivery.message_id, experience.metadata)
        return message, experience

    async def _judge(self) -> None:
        while True:
            await self._wait_until(lambda: self._decoding)
            held, delivery, future = self._decoding[0]
            try:
                message, experience = await future
            except MalformedMessage as error:
                self._put_away(held, delivery, str(error))
            except Exception as error:  # noqa: BLE001 - thread boundary: one message, not the reader
                _log.exception("message %d cannot be decoded", delivery.position)
                self._put_away(held, delivery, f"the reader failed: {type(error).__name__}")
            else:
                await self._accept(held, message, experience)
            self._decoding.popleft()
            await self._notify()

    async def _accept(self, held: _Held, message: str, experience: Experience) -> None:
        published_s = held.delivery.published_s
        self._messages += 1
        self._newest_published_s = max(published_s, self._newest_published_s or 0.0)
        learned = self._fleet.take(experience, message=message, published_s=published_s)
        blocks = await self._cut(held, message, experience) if learned else []
        if not blocks:
            self._over_quota += not learned
            self._without_blocks += learned
            await self._acknowledge([held])
            return
        for block in blocks:
            held.missing.add(block.message)
            self._names.setdefault(block.message, []).append(held)
        self._blocks += len(blocks)
        self._ready.extend(blocks)

    async def _cut(self, held: _Held, message: str, experience: Experience) -> list[Block]:
        version = experience.metadata.policy_version
        cutting = partial(
            cut,
            experience,
            source=source_of(experience.metadata),
            message=message,
            position=held.delivery.position,
            policy_version=_NO_POLICY if version is None else version,
            length=self._settings.block_length,
        )
        return await asyncio.get_running_loop().run_in_executor(self._cutter, cutting)

    async def _acknowledge(self, done: Sequence[_Held]) -> None:
        self._let_go(done)
        if done:
            await self._source.acknowledge([held.delivery for held in done])
        await self._notify()

    def _let_go(self, messages: Iterable[_Held]) -> None:
        """Answer for these no more."""
        for held in messages:
            self._held.pop(held.delivery.position, None)
            for name in held.missing:
                others = [other for other in self._names.pop(name) if other is not held]
                if others:
                    self._names[name] = others

    def _put_away(self, held: _Held, delivery: Delivery, reason: str) -> None:
        task = asyncio.create_task(self._quarantine(held, delivery, reason))
        self._quarantines.add(task)
        task.add_done_callback(self._quarantines.discard)

    async def _quarantine(self, held: _Held, delivery: Delivery, reason: str) -> None:
        try:
            await self._source.quarantine(delivery, reason)
            self._malformed += 1
        except StreamError as error:
            _log.warning("message %d comes again: %s", delivery.position, error)
        self._let_go([held])
        await self._notify()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._source.ack_wait_s / 3)
            before_s = time.monotonic() - self._settings.store_patience_s
            late = [
                held
                for held in self._held.values()
                if held.missing and (held.handed_out_s or before_s) < before_s
            ]
            self._given_up += len(late)
            self._let_go(late)
            await self._source.keep([held.delivery for held in self._held.values()])
            await self._notify()
