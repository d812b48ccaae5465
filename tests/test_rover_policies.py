from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from nats.js import JetStreamContext
from nats_server import NatsServer
from onnx_policies import BROKEN, sound
from rover_messages import Received, read
from rover_runs import (
    PATIENCE_S,
    driving,
    everything,
    require_whole,
    settings,
    until,
)

from envs.rover.rover import RoverSettings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as running:
        yield running


async def publish(jetstream: JetStreamContext, onnx_bytes: bytes, version: int) -> None:
    """As the training side does: the policy first, then the announcement."""
    update = {"onnx_bytes": onnx_bytes, "version": version}
    await jetstream.publish("models.sac.update", msgpack.packb(update))
    announcement = {"latest_version": version, "timestamp": time.time()}
    await jetstream.publish("models.sac.metadata", msgpack.packb(announcement))


@asynccontextmanager
async def listening(
    server: NatsServer,
) -> AsyncIterator[tuple[JetStreamContext, Callable[[int], Awaitable[Received]]]]:
    """JetStream, and a wait for the first message of a policy version from now on."""
    client = await server.client()
    subscription = await client.subscribe("rover.experience")

    async def message_by(version: int) -> Received:
        async with asyncio.timeout(PATIENCE_S):
            async for message in subscription.messages:
                received = read(message.data)
                if received.metadata["policy_version"] == version:
                    return received
        raise AssertionError("the subscription ended")

    yield client.jetstream(), message_by
    await client.close()


def simulated(server: NatsServer) -> RoverSettings:
    return settings(server, synthetic=False, hz=0.0)


def test_new_policies_drive_and_broken_ones_leave_the_old_one(server: NatsServer) -> None:
    async def scenario() -> None:
        async with (
            listening(server) as (jetstream, message_by),
            driving(simulated(server)) as [rover],
        ):
            await message_by(-1)
            await publish(jetstream, sound((1.5, 1.5)), 1)
            assert (await message_by(1)).actions.mean() > 0.6
            for version, fault in enumerate(BROKEN, start=2):
                await publish(jetstream, BROKEN[fault], version)
                await until(lambda: rover.policies.refused == version - 1)  # noqa: B023
            await message_by(1)
            await publish(jetstream, sound((-1.5, -1.5)), 20)
            assert (await message_by(20)).actions.mean() < -0.6
            await publish(jetstream, sound(), 19)
            await publish(jetstream, sound(), 21)
            await message_by(21)
        versions = [
            read(message.data).metadata["policy_version"] for message in await everything(server)
        ]
        assert versions == sorted(versions) and set(versions) == {-1, 1, 20, 21}

    asyncio.run(scenario())


def test_late_joiner_takes_the_current_policy(server: NatsServer) -> None:
    async def scenario() -> None:
        async with driving(settings(server)) as [first]:
            await until(lambda: first.outbox.acknowledged)
        async with listening(server) as (jetstream, message_by):
            await publish(jetstream, sound(), 6)
            await publish(jetstream, sound(), 7)
            async with driving(simulated(server)):
                await message_by(7)

    asyncio.run(scenario())


def test_policy_whose_announcement_was_lost_is_known_by_the_status(server: NatsServer) -> None:
    async def scenario() -> None:
        async with listening(server) as (jetstream, message_by), driving(simulated(server)):
            await message_by(-1)
            update = {"onnx_bytes": sound(), "version": 3}
            await jetstream.publish("models.sac.update", msgpack.packb(update))
            status = {"status": "training", "model_version": 3, "buffer_size": 0, "total_steps": 0}
            await jetstream.publish("server.sac.status", b"\xc1")
            await jetstream.publish("server.sac.status", msgpack.packb(status))
            await message_by(3)

    asyncio.run(scenario())


def test_policy_published_while_the_server_was_away_is_taken_after(server: NatsServer) -> None:
    async def scenario() -> None:
        async with driving(simulated(server)) as [rover]:
            await until(lambda: rover.outbox.acknowledged)
            server.kill()
            server.start()
            async with listening(server) as (jetstream, message_by):
                await publish(jetstream, sound(), 1)
                await message_by(1)
        require_whole(await everything(server), rover.batches)

    asyncio.run(scenario())
