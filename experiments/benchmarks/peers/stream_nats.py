"""Plain nats-py as the side of B9, in two ways.

`fetch`: pull fetching in batches, each message acknowledged without waiting, nothing decoded: what
nats-py itself allows. `naive`: what client code does at first: `async for` over a subscription, one
message at a time, decoded to float32 arrays, then an acknowledgement that is waited for.

A turn takes the stream's messages over and over, each time under a new consumer.

Asked: url, messages, nbytes (of one message), way.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import msgpack
import nats
import numpy as np
import zstandard
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from serve import arguments, serve

SUBJECT = "rover.experience"
MOST_MESSAGES, MOST_BYTES = 64, 32 << 20
"""Under way at once, as in our reader."""
WAIT_S = 5.0


class Plain:
    """A client of one stream."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._messages, self._url = asked["messages"], asked["url"]
        self._ahead = max(1, min(MOST_MESSAGES, MOST_BYTES // asked["nbytes"]))
        self._take = {"fetch": self._fetch, "naive": self._one_by_one}[asked["way"]]
        self._passes = itertools.count()

    def work_for(self, seconds: float) -> float:
        """Take messages for so long, all of them at least once."""
        return float(asyncio.run(self._turn(seconds)))

    async def _turn(self, seconds: float) -> int:
        client = await nats.connect(self._url)
        end_s, taken = time.monotonic() + seconds, 0
        while taken == 0 or time.monotonic() < end_s:
            config = ConsumerConfig(
                durable_name=f"plain-{next(self._passes)}",
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.EXPLICIT,
                max_ack_pending=self._ahead,
            )
            await self._take(client.jetstream(), config)
            taken += self._messages
        await client.close()
        return taken

    async def _fetch(self, jetstream: JetStreamContext, config: ConsumerConfig) -> None:
        subscription = await jetstream.pull_subscribe(SUBJECT, config.durable_name, config=config)
        left = self._messages
        while left:
            messages = await subscription.fetch(min(left, self._ahead), timeout=WAIT_S)
            for message in messages:
                await message.ack()
            left -= len(messages)
        await subscription.unsubscribe()

    async def _one_by_one(self, jetstream: JetStreamContext, config: ConsumerConfig) -> None:
        subscription = await jetstream.subscribe(
            SUBJECT, durable=config.durable_name, config=config, manual_ack=True
        )
        left = self._messages
        async for message in subscription.messages:
            decoded(message.data)
            await message.ack_sync(timeout=WAIT_S)
            left -= 1
            if not left:
                break
        await subscription.unsubscribe()


def decoded(payload: bytes) -> dict[str, Any]:
    """The fields of a message, its arrays as float32 and bool; nothing is checked."""
    fields: dict[str, Any] = msgpack.unpackb(payload)
    bev = fields["bev"]
    views = np.frombuffer(zstandard.decompress(bev["data"]), np.float32).reshape(bev["shape"])
    arrays = {
        name: np.frombuffer(packed[b"data"], packed[b"type"]).reshape(packed[b"shape"])
        for name, packed in fields.items()
        if name not in ("bev", "metadata")
    }
    return {**arrays, "bev": views.copy(), "metadata": fields["metadata"]}


if __name__ == "__main__":
    serve(lambda: 0.0, ("nats-py",), None, Plain(arguments()).work_for)
