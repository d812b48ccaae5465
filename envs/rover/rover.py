"""One rover as a whole: it drives at its pace, keeps what it recorded, sends it, takes policies.

Invariant: once told to stop it makes a message of the steps it still has, and ends when all its
messages are acknowledged or its time for that is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.rover.link import Link
from envs.rover.outbox import Outbox
from envs.rover.pilot import Pilot
from envs.rover.subscriber import PolicySubscriber
from envs.rover.vehicle import SimulatedRover, SyntheticRover, Vehicle
from envs.rover.wire import BATCH_STEPS, Message

_LATE_S = 1.0  # What a rover is behind its clock beyond this it does not catch up.


@dataclass(frozen=True)
class RoverSettings:
    """What the rovers of one process have in common.

    Attributes:
        connection: arguments of `nats.connect`.
        hz: steps per second; 0: as fast as it can.
        hold_bytes: of messages not acknowledged yet; a rover that holds so much stands still.
        drain_s: how long the rest may take to be acknowledged after the end.
        synthetic: made-up messages instead of a simulation, and no policies.
    """

    connection: Mapping[str, Any]
    hz: float
    hold_bytes: int
    drain_s: float
    synthetic: bool


@dataclass(frozen=True)
class Counts:
    """What became of the rovers' steps.

    Attributes:
        steps, batches: driven, and the messages made of them.
        sent: messages, each sending counted.
        acknowledged, refused, held: messages the server has, will never take, has not yet.
        connections: made.
        policies_refused: policies that were not sound.
    """

    rovers: int
    steps: int
    batches: int
    sent: int
    acknowledged: int
    refused: int
    held: int
    connections: int
    policies_refused: int


class Rover:
    """One rover; see the module.

    Args:
        rover_id: goes into the messages.
        seed: of its rooms and its exploration.
        settings: see there.
        delay_s: before the first step, so that many rovers do not send in one burst.
    """

    def __init__(
        self, rover_id: str, seed: int, settings: RoverSettings, delay_s: float = 0
    ) -> None:
        self.batches = 0
        self._settings = settings
        self._delay_s = delay_s
        self.outbox = Outbox(settings.hold_bytes)
        self.vehicle: Vehicle
        self.policies: PolicySubscriber | None = None
        if settings.synthetic:
            self.vehicle = SyntheticRover(rover_id, seed)
        else:
            pilot = Pilot(seed)
            self.vehicle = SimulatedRover(rover_id, seed, pilot)
            self.policies = PolicySubscriber(pilot)
        self.link = Link({**settings.connection, "name": rover_id}, self.outbox, self.policies)

    async def run(self, stop: asyncio.Event) -> None:
        """Drive until `stop`, then wait for the rest to be acknowledged, `drain_s` at most."""
        async with asyncio.TaskGroup() as tasks:
            link = tasks.create_task(self.link.run())
            closing = tasks.create_task(self._close_at(stop))
            await self._drive(stop)
            await closing
            with suppress(TimeoutError):
                await asyncio.wait_for(self.outbox.drained(), self._settings.drain_s)
            link.cancel()

    async def _close_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.outbox.close()

    async def _drive(self, stop: asyncio.Event) -> None:
        hz, loop = self._settings.hz, asyncio.get_running_loop()
        steps = self.vehicle.chunk if hz else BATCH_STEPS
        due_s = loop.time() + self._delay_s
        while not await _stopped(stop, due_s - loop.time()):
            await self._keep(await asyncio.to_thread(self.vehicle.run, steps))
            if hz:
                due_s = max(due_s + steps / hz, loop.time() - _LATE_S)
        await self._keep(self.vehicle.rest())

    async def _keep(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self.outbox.put(message)
            self.batches += 1


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Whether `stop` is set, after waiting for it that long."""
    if within_s > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), within_s)
    return stop.is_set()


def make_rovers(rover_id: str, number: int, seed: int, settings: RoverSettings) -> list[Rover]:
    """`number` rovers, named ID-0, ID-1, ... where there are several, with seeds from `seed` on.

    Their first steps are spread over the time that a message takes.
    """
    names = [rover_id] if number == 1 else [f"{rover_id}-{k}" for k in range(number)]
    spread_s = BATCH_STEPS / settings.hz if settings.hz and number > 1 else 0.0
    delays_s = np.random.default_rng(seed).random(number) * spread_s
    return [Rover(name, seed + k, settings, float(delays_s[k])) for k, name in enumerate(names)]


def count(rovers: Sequence[Rover]) -> Counts:
    """The counts of all rovers together."""
    return Counts(
        rovers=len(rovers),
        steps=sum(rover.vehicle.steps for rover in rovers),
        batches=sum(rover.batches for rover in rovers),
        sent=sum(rover.link.sent for rover in rovers),
        acknowledged=sum(rover.outbox.acknowledged for rover in rovers),
        refused=sum(rover.outbox.refused for rover in rovers),
        held=sum(len(rover.outbox) for rover in rovers),
        connections=sum(rover.link.connections for rover in rovers),
        policies_refused=sum(rover.policies.refused for rover in rovers if rover.policies),
    )
