"""How policies reach a rover: announcements are heard, the newest policy is fetched and checked.

Invariant: the pilot is offered each version at most once, in rising order, and only sound ones; a
refused policy leaves the old one driving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from envs.rover.pilot import Pilot
from envs.rover.policy import Policy, PolicyError
from envs.rover.streams import MODELS
from envs.rover.wire import (
    MODEL_METADATA,
    MODEL_UPDATE,
    NO_POLICY,
    SERVER_STATUS,
    ModelUpdate,
    WireError,
    decode_metadata,
    decode_status,
    decode_update,
)

_log = logging.getLogger(__name__)


class PolicySubscriber:
    """Follows the announcements of policies, on one connection after the other.

    Args:
        pilot: takes the policies.

    Attributes:
        refused: policies that were not sound.
    """

    def __init__(self, pilot: Pilot) -> None:
        self.refused = 0
        self._pilot = pilot
        self._version = NO_POLICY  # Of the newest fetched, sound or not.
        self._announced = NO_POLICY
        self._asked = NO_POLICY
        self._told = asyncio.Event()

    async def follow(self, client: Client, jetstream: JetStreamContext) -> None:
        """Take what is announced on this connection, beginning with what was before it."""
        self._asked = NO_POLICY
        # Subscribed before reading, so that nothing is missed in between.
        await client.subscribe(MODEL_METADATA, cb=self._on_metadata)
        await client.subscribe(SERVER_STATUS, cb=self._on_status)
        with suppress(NotFoundError):
            last = await jetstream.get_last_msg(MODELS, MODEL_METADATA)
            self._hear(decode_metadata, last.data or b"")
        while True:
            await self._told.wait()
            self._told.clear()
            # The status repeats a version every second: one question each.
            if self._announced > self._version and self._announced != self._asked:
                self._asked = self._announced
                await self._fetch(jetstream)

    async def _on_metadata(self, message: Msg) -> None:
        self._hear(decode_metadata, message.data)

    async def _on_status(self, message: Msg) -> None:
        self._hear(decode_status, message.data)

    def _hear(self, version_of: Callable[[bytes], int], payload: bytes) -> None:
        try:
            self._announced = version_of(payload)
        except WireError as error:
            _log.warning("announcement of a policy ignored: %s", error)
            return
        self._told.set()

    async def _fetch(self, jetstream: JetStreamContext) -> None:
        try:
            last = await jetstream.get_last_msg(MODELS, MODEL_UPDATE)
            update = decode_update(last.data or b"")
        except (NotFoundError, WireError) as error:
            _log.warning("policy %d is announced and not there: %s", self._announced, error)
            return
        if update.version > self._version:
            self._version = update.version
            await self._offer(update)

    async def _offer(self, update: ModelUpdate) -> None:
        try:
            policy = await asyncio.to_thread(Policy, update)
        except PolicyError as error:
            self.refused += 1
            _log.error(
                "policy %d refused, %d stays: %s", update.version, self._pilot.version, error
            )
            return
        self._pilot.offer(policy)
        _log.info("policy %d accepted", update.version)
