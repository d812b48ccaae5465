"""The NATS source against a real server: what is owed is delivered until it is acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.js import api
from nats_server import MIB, NatsServer

from rl_cluster.streams.nats_connection import Connection
from rl_cluster.streams.nats_settings import CONTROL, EXPERIENCE, MODELS, QUARANTINE, StreamSettings
from rl_cluster.streams.nats_source import NatsSource
from rl_cluster.streams.nats_streams import covers, ensure_stream
from rl_cluster.streams.source import Delivery, StreamError

SUBJECT = EXPERIENCE.subjects[0]
LARGEST = 32 * MIB - 200
"""A file store takes records of 32 MiB, whatever the limits of server and stream."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def opened(settings: StreamSettings) -> AsyncIterator[NatsSource]:
    source = NatsSource(settings)
    await source.open()
    try:
        yield source
    finally:
        await source.close()


async def publish(server: NatsServer, *payloads: bytes, **headers: str) -> None:
    client = await server.client()
    for payload in payloads:
        await client.jetstream().publish(SUBJECT, payload, headers=headers or None)
    await client.close()


async def fetched(source: NatsSource, count: int, timeout_s: float = 30.0) -> list[Delivery]:
    """Exactly `count` messages."""
    found: list[Delivery] = []
    async with asyncio.timeout(timeout_s):
        while len(found) < count:
            found += await source.fetch(count - len(found), 0.2)
    return found


async def stream(server: NatsServer, name: str) -> api.StreamInfo:
    client = await server.client()
    info = await client.jetstream().stream_info(name)
    await client.close()
    return info


def test_messages_come_in_order_with_their_names_and_are_gone_once_acknowledged(
    server: NatsServer,
) -> None:
    async def read() -> None:
        settings = StreamSettings(server.url)
        async with opened(settings) as source:
            await publish(server, b"a", b"b", **{"Nats-Msg-Id": "r1-7"})
            await publish(server, b"b")
            first, second = await fetched(source, 2)
            assert (first.payload, first.message_id, first.position) == (b"a", "r1-7", 1)
            assert (second.payload, second.message_id, second.position) == (b"b", None, 2)
            assert second.published_s >= first.published_s > 1.7e9
            await source.acknowledge([first, second])
        async with opened(settings) as source:
            assert await source.fetch(10, 0.3) == []

    asyncio.run(read())


def test_a_reader_that_vanished_leaves_what_it_had_not_acknowledged_to_the_next(
    server: NatsServer,
) -> None:
    async def read() -> None:
        settings = StreamSettings(server.url, ack_wait_s=1.0)
        vanishing = NatsSource(settings)
        await vanishing.open()
        await publish(server, *(str(number).encode() for number in range(6)))
        had = await fetched(vanishing, 6)
        await vanishing.acknowledge(had[:2])
        await vanishing._connection.close()
        async with opened(settings) as source:
            again = await fetched(source, 4)
            assert [delivery.payload for delivery in again] == [b"2", b"3", b"4", b"5"]
            assert all(delivery.redelivered == 1 for delivery in again)
            assert source.status().redelivered == 4

    asyncio.run(read())


def test_what_is_kept_is_not_delivered_again_and_what_is_owed_at_the_end_is_at_once(
    server: NatsServer,
) -> None:
    async def read() -> None:
        settings = StreamSettings(server.url, ack_wait_s=2.0)
        async with opened(settings) as source:
            await publish(server, b"a")
            held = await fetched(source, 1)
            for _ in range(6):
                assert await source.fetch(1, 0.6) == []
                await source.keep(held)
            await source.close(held)
        async with opened(settings) as source:
            (again,) = await fetched(source, 1)
            assert again.redelivered == 1

    asyncio.run(read())


def test_a_server_killed_under_load_loses_nothing_that_it_acknowledged(
    server: NatsServer,
) -> None:
    taken: set[bytes] = set()
    published: set[bytes] = set()

    async def sender(stop: threading.Event) -> None:
        """Publishes, and again until it is acknowledged, as rovers do."""
        connection = Connection(StreamSettings(server.url), "rover")
        await connection.open()
        number = 0
        while not stop.is_set():
            payload = str(number).encode() + bytes(20_000)
            try:
                await connection.js.publish(SUBJECT, payload, timeout=1.0)
            except (nats.errors.Error, OSError):
                continue
            published.add(payload)
            number += 1
        await connection.close()

    async def run() -> None:
        stop = threading.Event()
        settings = StreamSettings(server.url, ack_wait_s=1.0, max_in_flight=16)
        async with opened(settings) as source:
            sending = asyncio.create_task(sender(stop))
            for kill in range(1, 4):
                while len(taken) < 40 * kill:
                    await take(source)
                server.kill()
                await asyncio.sleep(0.1)
                server.start()
            stop.set()
            await sending
            async with asyncio.timeout(30.0):
                while not published <= taken or source.status().reconnects < 3:
                    await take(source)
            assert source.status().reconnects == 3

    async def take(source: NatsSource) -> None:
        for delivery in await source.fetch(8, 0.2):
            taken.add(delivery.payload)
            await source.acknowledge([delivery])

    asyncio.run(run())
    assert len(published) >= 119  # the last may be taken, and its acknowledgement lost


def test_streams_that_exist_with_other_settings_are_kept_and_told(server: NatsServer) -> None:
    async def read() -> None:
        client = await server.client()
        js = client.jetstream()
        config = api.StreamConfig(
            name=EXPERIENCE.name, subjects=["rover.experience", "mine"], max_msgs=7, max_age=60
        )
        before = (await js.add_stream(config)).config
        async with opened(StreamSettings(server.url)) as source:
            (notice,) = source.take_notices()
            assert notice.kind == "stream_differs" and "max_msgs 7 (not 1000)" in notice.cause
            await publish(server, b"a")
            assert len(await fetched(source, 1)) == 1
        assert (await js.stream_info(EXPERIENCE.name)).config == before
        await client.close()

    asyncio.run(read())


def test_a_stream_of_another_name_that_has_the_subject_is_used(server: NatsServer) -> None:
    async def read() -> None:
        client = await server.client()
        await client.jetstream().add_stream(name="EVERYTHING", subjects=["rover.>"])
        await client.close()
        async with opened(StreamSettings(server.url)) as source:
            await publish(server, b"a")
            (delivery,) = await fetched(source, 1)
            await source.quarantine(delivery, "not a message")
        assert (await stream(server, "EVERYTHING")).state.messages == 2

    asyncio.run(read())


@pytest.mark.parametrize(
    ("consumer", "complaint"),
    [
        ({"ack_policy": api.AckPolicy.NONE}, "ack-none consumer"),
        ({"ack_policy": api.AckPolicy.EXPLICIT, "deliver_subject": "x"}, "push consumer"),
    ],
)
def test_a_consumer_that_cannot_be_used_is_refused_with_the_remedy(
    server: NatsServer, consumer: dict[str, Any], complaint: str
) -> None:
    async def read() -> None:
        client = await server.client()
        js = client.jetstream()
        await js.add_stream(name=EXPERIENCE.name, subjects=list(EXPERIENCE.subjects))
        await js.add_consumer(EXPERIENCE.name, durable_name="sac_trainer", **consumer)
        await client.close()
        with pytest.raises(StreamError, match=complaint) as refused:
            await NatsSource(StreamSettings(server.url)).open()
        assert "delete it there" in str(refused.value)

    asyncio.run(read())


def test_a_stream_without_our_subject_is_refused(server: NatsServer) -> None:
    async def read() -> None:
        client = await server.client()
        await client.jetstream().add_stream(name=EXPERIENCE.name, subjects=["mine"])
        await client.close()
        with pytest.raises(StreamError, match=r"exists without rover\.experience"):
            await NatsSource(StreamSettings(server.url)).open()

    asyncio.run(read())


def test_the_protocols_streams_are_made_with_its_limits(server: NatsServer) -> None:
    async def made() -> None:
        connection = Connection(StreamSettings(server.url), "test")
        await connection.open()
        for wanted in (EXPERIENCE, MODELS, CONTROL, QUARANTINE):
            config = (await ensure_stream(connection, wanted)).config
            assert await ensure_stream(connection, wanted)
            assert config.subjects == list(wanted.subjects)
            assert (config.max_msgs, config.max_bytes) == (wanted.max_msgs, wanted.max_bytes)
            assert (config.max_age, config.max_msg_size) == (wanted.max_age_s, wanted.max_msg_bytes)
            assert (config.retention, config.storage) == ("limits", "file")
        assert connection.take_notices() == []
        await connection.close()

    asyncio.run(made())


def test_a_malformed_message_is_quarantined_with_reason_and_hash_and_never_comes_again(
    server: NatsServer,
) -> None:
    async def read() -> None:
        settings = StreamSettings(server.url, ack_wait_s=2.0)
        async with opened(settings) as source:
            await publish(server, b"garbage")
            (delivery,) = await fetched(source, 1)
            await source.quarantine(delivery, "bev is 'no\r\nX-Header: ü' map")
            await source.quarantine(delivery, "told again: the copy stays one")
            assert await source.fetch(1, 3.0) == []
        client = await server.client()
        js = client.jetstream()
        copy = await js.get_last_msg(QUARANTINE.name, QUARANTINE.subjects[0])
        assert (await js.stream_info(QUARANTINE.name)).state.messages == 1
        await client.close()
        assert copy.data == b"garbage" and copy.headers is not None
        assert copy.headers["Quarantine-Sha256"] == hashlib.sha256(b"garbage").hexdigest()
        assert copy.headers["Quarantine-Reason"] == "bev is 'no??X-Header: ?' map"
        assert copy.headers["Quarantine-Position"] == "1"

    asyncio.run(read())


def test_a_malformed_message_stays_owed_while_its_copy_cannot_be_kept(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(StreamSettings(server.url, ack_wait_s=0.5)) as source:
            client = await server.client()
            await client.jetstream().delete_stream(QUARANTINE.name)
            await client.close()
            await publish(server, b"garbage")
            (delivery,) = await fetched(source, 1)
            with pytest.raises(StreamError, match="quarantine of message 1"):
                await source.quarantine(delivery, "why")
            (again,) = await fetched(source, 1)
            assert again.redelivered == 1

    asyncio.run(read())


def test_the_largest_message_can_be_read_and_quarantined(server: NatsServer) -> None:
    async def read() -> None:
        largest = bytes(LARGEST)
        async with opened(StreamSettings(server.url, buffer_bytes=MIB)) as source:
            await publish(server, b"small", largest, b"small", largest)
            found = await fetched(source, 4)
            assert [len(delivery.payload) for delivery in found] == [5, LARGEST, 5, LARGEST]
            await source.quarantine(found[1], "too large")
        assert (await stream(server, QUARANTINE.name)).state.bytes > 31 * MIB

    asyncio.run(read())


def test_a_flood_waits_at_the_server(server: NatsServer) -> None:
    async def read() -> None:
        settings = StreamSettings(server.url, buffer_bytes=4 * MIB, max_in_flight=64)
        async with opened(settings) as source:
            await publish(server, *(bytes(MIB) for _ in range(40)))
            seen = []
            for _ in range(40):
                (delivery,) = await fetched(source, 1)
                await source.acknowledge([delivery])
                await asyncio.sleep(0.005)
                seen.append(source.status().buffered_bytes)
            assert 0 < max(seen) <= 4 * MIB

    asyncio.run(read())


def test_a_consumer_that_somebody_deletes_is_made_again(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(StreamSettings(server.url)) as source:
            client = await server.client()
            await client.jetstream().delete_consumer(EXPERIENCE.name, "sac_trainer")
            await publish(server, b"a")
            assert [d.payload for d in await fetched(source, 1)] == [b"a"]
            await client.jetstream().delete_stream(EXPERIENCE.name)
            assert await source.fetch(1, 3.0) == []
            await publish(server, b"b")
            assert [d.payload for d in await fetched(source, 1)] == [b"b"]
            await client.close()

    asyncio.run(read())


def test_messages_that_the_stream_dropped_before_they_were_read_are_counted(
    server: NatsServer,
) -> None:
    async def read() -> None:
        small = replace(EXPERIENCE, max_msgs=5)
        settings = StreamSettings(server.url, experience=small, max_in_flight=1)
        async with opened(settings) as source:
            await publish(server, b"held")
            held = await fetched(source, 1)
            await publish(server, *(b"x" for _ in range(12)))
            await source.acknowledge(held)
            read = [1]
            while read[-1] < 13:
                found = await fetched(source, 1)
                await source.acknowledge(found)
                read += [delivery.position for delivery in found]
            assert read[-5:] == [9, 10, 11, 12, 13]
            assert source.status().expired == 13 - len(read) > 0

    asyncio.run(read())


def test_a_server_that_comes_back_with_the_stock_payload_limit_ends_the_source(
    server: NatsServer, tmp_path: Path
) -> None:
    async def read() -> None:
        source = NatsSource(StreamSettings(server.url))
        await source.open()
        server.kill()
        configuration = tmp_path / "nats.conf"
        lines = configuration.read_text().splitlines()
        configuration.write_text("\n".join(line for line in lines if "max_payload" not in line))
        server.start()
        with pytest.raises(StreamError, match="set `max_payload"):
            async with asyncio.timeout(20):
                while True:
                    await source.fetch(1, 0.1)

    asyncio.run(read())


@pytest.mark.parametrize(
    ("pattern", "subject", "taken"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        (">", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b.c", False),
        ("a", "a.b", False),
        ("a.b.>", "a.c.d", False),
    ],
)
def test_wildcards_are_read_as_the_server_reads_them(
    pattern: str, subject: str, taken: bool
) -> None:
    assert covers(pattern, subject) == taken
