"""Policies on their way: never announced before they are there, versions that only grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from nats.js.errors import NotFoundError
from nats_server import NatsServer

from rl_cluster.streams.codec import (
    PolicyMetadata,
    PolicyUpdate,
    ServerStatus,
    encode_metadata,
    encode_update,
)
from rl_cluster.streams.models import NO_VERSION, ModelPublisher, VersionTaken
from rl_cluster.streams.nats_settings import METADATA, MODELS, STATUS, UPDATE, StreamSettings
from rl_cluster.streams.source import StreamError, StreamUnreachable

POLICY = b"onnx" * 500_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def opened(server: NatsServer) -> AsyncIterator[ModelPublisher]:
    publisher = ModelPublisher(StreamSettings(server.url, answer_timeout_s=2.0))
    await publisher.open()
    try:
        yield publisher
    finally:
        await publisher.close()


async def stored(server: NatsServer) -> list[tuple[str, int]]:
    """(subject, version) of all that the stream holds, in its order, read by the document alone."""
    client = await server.client()
    js = client.jetstream()
    state = (await js.stream_info(MODELS.name)).state
    found = []
    for position in range(state.first_seq, state.last_seq + 1):
        message = await js.get_msg(MODELS.name, position)
        fields = msgpack.unpackb(message.data)
        version = fields["version" if message.subject == UPDATE else "latest_version"]
        found.append((message.subject, version))
    await client.close()
    return found


def test_the_policy_is_stored_before_it_is_announced(server: NatsServer) -> None:
    async def publish() -> None:
        async with opened(server) as publisher:
            assert await publisher.latest_version() == NO_VERSION
            await publisher.publish(POLICY, 1)
            await publisher.publish(POLICY, 7)
        expected = [(UPDATE, 1), (METADATA, 1), (UPDATE, 7), (METADATA, 7)]
        assert await stored(server) == expected

    asyncio.run(publish())


def test_a_rover_that_joins_late_finds_the_current_policy(server: NatsServer) -> None:
    async def join() -> None:
        async with opened(server) as publisher:
            await publisher.publish(b"old", 1)
            await publisher.publish(POLICY, 2)
        client = await server.client()
        js = client.jetstream()
        metadata = msgpack.unpackb((await js.get_last_msg(MODELS.name, METADATA)).data)
        update = msgpack.unpackb((await js.get_last_msg(MODELS.name, UPDATE)).data)
        assert metadata["latest_version"] == 2 and metadata["timestamp"] > 1.7e9
        assert update == {"onnx_bytes": POLICY, "version": 2}
        await client.close()

    asyncio.run(join())


def test_versions_grow_over_restarts_and_over_what_others_published(server: NatsServer) -> None:
    async def publish() -> None:
        async with opened(server) as publisher:
            await publisher.publish(b"one", 1)
            client = await server.client()
            js = client.jetstream()
            await js.publish(UPDATE, encode_update(PolicyUpdate(b"theirs", 40)))
            assert await publisher.latest_version() == 40
            await js.publish(METADATA, encode_metadata(PolicyMetadata(41, 0.0)))
            await client.close()
        async with opened(server) as heir:
            assert await heir.latest_version() == 41
            for version in (1, 40, 41):
                with pytest.raises(VersionTaken, match="not above 41"):
                    await heir.publish(b"two", version)
            await heir.publish(b"two", 42)

    asyncio.run(publish())


def test_a_publisher_that_missed_its_heir_stores_and_announces_nothing(server: NatsServer) -> None:
    async def publish() -> None:
        async with opened(server) as frozen, opened(server) as heir:
            await frozen.publish(b"one", 1)
            await heir.latest_version()
            await heir.publish(b"two", 2)
            with pytest.raises(VersionTaken) as taken:
                await frozen.publish(b"three", 3)
            assert taken.value.latest == 2
            await frozen.publish(b"three", 3)
        assert [version for _, version in await stored(server)] == [1, 1, 2, 2, 3, 3]

    asyncio.run(publish())


def test_a_publisher_frozen_between_policy_and_announcement_announces_nothing(
    server: NatsServer,
) -> None:
    async def publish() -> None:
        async with opened(server) as heir, opened(server) as frozen:
            send = frozen._send

            async def freeze(subject: str, *rest: object) -> int:
                if subject == METADATA:
                    await heir.latest_version()
                    await heir.publish(b"two", 2)
                return await send(subject, *rest)  # type: ignore[arg-type]

            frozen._send = freeze  # type: ignore[method-assign]
            with pytest.raises(VersionTaken):
                await frozen.publish(b"one", 1)
        assert await stored(server) == [(UPDATE, 1), (UPDATE, 2), (METADATA, 2)]

    asyncio.run(publish())


def test_a_policy_whose_acknowledgement_was_lost_is_stored_and_announced_once(
    server: NatsServer,
) -> None:
    """What the server has and the publisher has not heard of is there as if another had sent it."""

    async def publish() -> None:
        client = await server.client()
        js = client.jetstream()
        update = encode_update(PolicyUpdate(b"policy", 2))
        async with opened(server) as publisher:
            await publisher.publish(b"policy", 1)
            await js.publish(UPDATE, update)
            await publisher.publish(b"policy", 2)
            send = publisher._send

            async def announced_before(subject: str, *rest: object) -> int:
                if subject == METADATA:
                    await js.publish(METADATA, encode_metadata(PolicyMetadata(3, 1.0)))
                return await send(subject, *rest)  # type: ignore[arg-type]

            publisher._send = announced_before  # type: ignore[method-assign]
            await publisher.publish(b"policy", 3)
        await client.close()
        expected = [(subject, version) for version in (1, 2, 3) for subject in (UPDATE, METADATA)]
        assert await stored(server) == expected

    asyncio.run(publish())


def test_a_server_killed_while_policies_are_sent_never_announces_what_it_has_not(
    server: NatsServer,
) -> None:
    async def publish() -> None:
        async with opened(server) as publisher:
            for version in range(1, 13):
                sending = asyncio.create_task(sent(publisher, version))
                if version % 3 == 0:
                    await asyncio.sleep(0.004 * version / 3)
                    server.kill()
                    await asyncio.sleep(0.05)
                    server.start()
                await sending
        found = await stored(server)
        announced = [version for subject, version in found if subject == METADATA]
        assert announced == sorted(announced) and announced[-1] == 12
        for place, (subject, version) in enumerate(found):
            assert subject == UPDATE or (UPDATE, version) in found[:place]

    async def sent(publisher: ModelPublisher, version: int) -> None:
        while True:
            try:
                return await publisher.publish(POLICY, version)
            except StreamUnreachable:
                await asyncio.sleep(0.05)
            except VersionTaken as taken:
                assert taken.latest == version
                return None

    asyncio.run(publish())


def test_a_policy_that_no_rover_could_read_is_refused(server: NatsServer) -> None:
    async def publish() -> None:
        async with opened(server) as publisher:
            with pytest.raises(StreamError, match="are the most"):
                await publisher.publish(bytes(32 * 2**20), 1)
            await publisher.publish(bytes(31 * 2**20), 1)
        async with opened(server) as heir:
            assert await heir.latest_version() == 1

    asyncio.run(publish())


def test_a_malformed_last_message_of_others_is_told_and_passed_over(server: NatsServer) -> None:
    async def publish() -> None:
        async with opened(server) as publisher:
            await publisher.publish(b"one", 1)
            client = await server.client()
            await client.jetstream().publish(UPDATE, b"garbage")
            await client.close()
            assert await publisher.latest_version() == 1
            (notice,) = publisher.take_notices()
            assert notice.kind == "stream_malformed" and UPDATE in notice.cause
            await publisher.publish(b"two", 2)

    asyncio.run(publish())


def test_rovers_hear_the_status(server: NatsServer) -> None:
    async def tell() -> None:
        async with opened(server) as publisher:
            client = await server.client()
            heard = await client.subscribe(STATUS)
            await client.flush()
            await publisher.publish_status(ServerStatus("training", 3, 1000, 2000))
            message = await heard.next_msg(timeout=10)
            assert msgpack.unpackb(message.data) == {
                "status": "training",
                "model_version": 3,
                "buffer_size": 1000,
                "total_steps": 2000,
            }
            server.kill()
            while not publisher.trouble:
                await asyncio.sleep(0.01)
            await publisher.publish_status(ServerStatus("training", 3, 1000, 2000))
            server.start()

    asyncio.run(tell())


def test_existing_streams_keep_their_settings(server: NatsServer) -> None:
    async def publish() -> None:
        client = await server.client()
        js = client.jetstream()
        with pytest.raises(NotFoundError):
            await js.stream_info(MODELS.name)
        made = await js.add_stream(name=MODELS.name, subjects=["models.>"], max_msgs_per_subject=1)
        async with opened(server) as publisher:
            await publisher.publish(b"one", 1)
            await publisher.publish(b"two", 2)
            (notice,) = publisher.take_notices()
            assert "ROVER_MODELS exists" in notice.cause
        assert (await js.stream_info(MODELS.name)).config == made.config
        await client.close()
        assert await stored(server) == [(UPDATE, 2), (METADATA, 2)]

    asyncio.run(publish())
