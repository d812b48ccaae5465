"""Our intake alone as the side of B9: from the stream to blocks in this process, without Ray.

A turn takes the stream's messages over and over, each time under a new consumer, and acknowledges
each as soon as its blocks are handed out.

Asked: url, messages.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial
from typing import Any

from serve import arguments, serve

from rl_cluster.streams.codec import DecodeLimits, decode_experience
from rl_cluster.streams.fleet import Fleet
from rl_cluster.streams.intake import Intake, IntakeSettings
from rl_cluster.streams.nats_settings import StreamSettings
from rl_cluster.streams.nats_source import NatsSource

BLOCK_LENGTH, BLOCKS, WAIT_S = 64, 4, 5.0


class Alone:
    """The intake of one stream."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked, self._passes = asked, itertools.count()

    def work_for(self, seconds: float) -> float:
        """Take messages for so long, all of them at least once."""
        end_s, messages = time.monotonic() + seconds, 0
        while messages == 0 or time.monotonic() < end_s:
            messages += asyncio.run(self._pass())
        return float(messages)

    async def _pass(self) -> int:
        settings = StreamSettings(self._asked["url"], durable=f"alone-{next(self._passes)}")
        decode = partial(decode_experience, limits=DecodeLimits())
        fleet = Fleet(None, time.monotonic)
        intake = Intake(NatsSource(settings), decode, fleet, IntakeSettings(BLOCK_LENGTH))
        await intake.open()
        taken = 0
        while taken < self._asked["messages"]:
            blocks = await intake.collect(BLOCKS, WAIT_S)
            if not blocks:
                raise RuntimeError(f"{taken} messages, and nothing for {WAIT_S:.0f} s")
            await intake.stored([block.message for block in blocks])
            taken += len(blocks)
        await intake.close()
        return taken


if __name__ == "__main__":
    serve(lambda: 0.0, ("rl-cluster", "nats-py"), None, Alone(arguments()).work_for)
