"""A sender of messages that can be told apart, and what has to be in a journal after them.

A message is named in one of three ways: by its header, by rover and number, or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nats
import nats.errors
import numpy as np
from nats.js import JetStreamContext
from nats_server import MIB, NatsServer
from stream_messages import experience_of

from rl_cluster.replay.block import Block
from rl_cluster.replay.journal_segments import RestoredBlock, list_segments, newest_first
from rl_cluster.streams.codec import Experience, Metadata, encode_experience
from rl_cluster.streams.nats_settings import EXPERIENCE, StreamSettings

Step = tuple[bytes, float, bool, str, str]
"""A transition: action, reward, whether it ended an episode, both observations (but an end's)."""
_STEPS = 5
_ANSWER_S = 2.0
_LOOKS_EVERY = 20
_MOST_OWED = 300
"""Messages that the reader may lag behind: a stream drops the oldest above its own limit."""


class Sender:
    """Publishes from a thread, each message until the server has acknowledged it; a context manager
    that returns when the last one is.

    Args:
      server: may die meanwhile.
      per_s: messages a second at most.
      most: messages in all; None: until the end of the context.
    """

    def __init__(self, server: NatsServer, per_s: float, most: int | None = None) -> None:
        self._server, self._pause_s, self._most = server, 1 / per_s, most
        self._durable = StreamSettings(server.url).durable
        self.acknowledged = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._most is None:
            self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        client = await nats.connect(
            self._server.url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            pending_size=64 * MIB,
            error_cb=_ignore,
        )
        while not self._stop.is_set() and self.acknowledged != self._most:
            with suppress(nats.errors.Error, OSError):
                await self._publish(client.jetstream())
            await asyncio.sleep(self._pause_s)
        await client.close()

    async def _publish(self, jetstream: JetStreamContext) -> None:
        """The next message, unless the reader is too far behind."""
        if self.acknowledged % _LOOKS_EVERY == 0:
            reader = await jetstream.consumer_info(EXPERIENCE.name, self._durable)
            if (reader.num_pending or 0) + (reader.num_ack_pending or 0) > _MOST_OWED:
                return
        payload, headers = message(self.acknowledged)
        subject = EXPERIENCE.subjects[0]
        await jetstream.publish(subject, payload, _ANSWER_S, headers=headers)
        self.acknowledged += 1


async def _ignore(_: Exception) -> None:
    """A server that is away is what the tests are about."""


def experience(number: int) -> Experience:
    """Steps of a message, every third of which ends an episode in its middle or at its end."""
    dones = np.zeros(_STEPS, np.bool_)
    if number % 3 == 0:
        dones[(number // 3) % _STEPS] = True
    named = number % 3 == 1
    metadata = Metadata("r", number, None, None) if named else Metadata(None, None, None, None)
    return experience_of(dones, metadata=metadata, seed=number)


def message(number: int) -> tuple[bytes, dict[str, str] | None]:
    """Payload and headers."""
    headers = {"Nats-Msg-Id": f"r-{number}"} if number % 3 == 0 else None
    return encode_experience(experience(number)), headers


def wanted(messages: int) -> Counter[Step]:
    """Transitions of the first messages: each step whose next observation, or end, is known."""
    found: Counter[Step] = Counter()
    for number in range(messages):
        sent = experience(number)
        seen = [_digest(row) for row in _rows(sent)]
        for t in range(sent.steps):
            done = bool(sent.dones[t])
            if done or t + 1 < sent.steps:
                after = "" if done else seen[t + 1]
                action, reward = sent.actions[t].tobytes(), float(sent.rewards[t])
                found[action, reward, done, seen[t], after] += 1
    return found


def in_journal(directory: Path) -> Counter[Step]:
    """Transitions of all blocks of a journal, none of which may be damaged."""
    found: Counter[Step] = Counter()
    for record in newest_first(list_segments(directory)):
        assert isinstance(record, RestoredBlock), record
        found.update(_steps(record.block))
    return found


def _steps(block: Block) -> Iterator[Step]:
    seen = [_digest(row) for row in block.observations]
    for k in range(block.core):
        done = bool(block.terminated[k + 1])
        after = "" if done else seen[k + 1]
        yield block.actions[k].tobytes(), float(block.rewards[k + 1]), done, seen[k], after


def _rows(sent: Experience) -> np.ndarray:
    views = sent.bev.reshape(sent.steps, -1)
    return np.concatenate([views, sent.proprio], axis=1).astype(np.float16)


def _digest(row: np.ndarray) -> str:
    return hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest()
