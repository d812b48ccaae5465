"""The intake over a real server: what is owed is acknowledged when its blocks are stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats_server import NatsServer
from stream_messages import experience_of

from rl_cluster.replay.block import Block
from rl_cluster.streams.codec import (
    DecodeLimits,
    Experience,
    Metadata,
    decode_experience,
    encode_experience,
)
from rl_cluster.streams.fleet import Fleet
from rl_cluster.streams.intake import Intake, IntakeSettings
from rl_cluster.streams.nats_connection import Connection
from rl_cluster.streams.nats_settings import EXPERIENCE, QUARANTINE, StreamSettings
from rl_cluster.streams.nats_source import NatsSource
from rl_cluster.streams.source import StreamError

SUBJECT = EXPERIENCE.subjects[0]
DECODE = partial(decode_experience, limits=DecodeLimits())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def opened(
    server: NatsServer,
    *,
    decode: Any = DECODE,
    quota: float | None = None,
    ack_wait_s: float = 30.0,
    **settings: Any,
) -> AsyncIterator[Intake]:
    source = NatsSource(StreamSettings(server.url, ack_wait_s=ack_wait_s, answer_timeout_s=2.0))
    wanted = IntakeSettings(block_length=8, **settings)
    intake = Intake(source, decode, Fleet(quota, time.monotonic), wanted)
    await intake.open()
    try:
        yield intake
    finally:
        await intake.close()


def message(number: int, steps: int = 5, *, done_at: int = -1, evaluation: bool = False) -> bytes:
    """A message of rover `r`: one block of `steps` - 1 transitions, or two if one step is done."""
    dones = [step == done_at for step in range(steps)]
    metadata = Metadata("r", number, 3, 1e9)
    return encode_experience(experience_of(dones, [evaluation] * steps, metadata, number))


def names(number: int, blocks: int = 1) -> list[str]:
    return [f"rover:r/{number}#{block}" for block in range(blocks)]


async def publish(server: NatsServer, *payloads: bytes) -> None:
    client = await server.client()
    for payload in payloads:
        await client.jetstream().publish(SUBJECT, payload)
    await client.close()


async def collected(intake: Intake, count: int) -> list[Block]:
    """Exactly `count` blocks."""
    blocks: list[Block] = []
    async with asyncio.timeout(30):
        while len(blocks) < count:
            blocks += await intake.collect(count - len(blocks), 0.2)
    return blocks


async def unacknowledged(server: NatsServer) -> int:
    """Messages that the server holds to be owed, delivered or not."""
    client = await server.client()
    info = await client.jetstream().consumer_info(EXPERIENCE.name, "sac_trainer")
    await client.close()
    return int(info.num_ack_pending or 0) + int(info.num_pending or 0)


async def until_acknowledged(server: NatsServer, owed: int = 0) -> None:
    async with asyncio.timeout(20):
        while await unacknowledged(server) != owed:
            await asyncio.sleep(0.02)


def test_a_message_is_acknowledged_when_the_last_of_its_blocks_is_stored(
    server: NatsServer,
) -> None:
    async def read() -> None:
        async with opened(server) as intake:
            await publish(server, message(0, done_at=1), message(1))
            blocks = await collected(intake, 3)
            assert [block.message for block in blocks] == names(0, 2) + names(1)
            assert [block.sequence for block in blocks] == [1, 1, 2]
            assert {block.source for block in blocks} == {"rover:r"}
            assert set(blocks[0].policy_versions) == {3}
            for block in blocks:
                block.check_valid()
            await intake.stored(names(0)[:1])
            await intake.stored(names(1))
            await until_acknowledged(server, 1)
            assert intake.status().in_flight == 1
            await intake.stored(names(0, 2)[1:])
            await until_acknowledged(server)
            await intake.stored([*names(0), "of nobody#0"])
            status = intake.status()
            assert (status.messages, status.blocks, status.in_flight) == (2, 3, 0)
            assert status.newest_published_s == pytest.approx(time.time(), abs=60)

    asyncio.run(read())


def test_a_reader_that_ends_leaves_what_is_not_stored_to_the_next_under_the_same_names(
    server: NatsServer,
) -> None:
    async def read() -> None:
        async with opened(server) as intake:
            await publish(server, *(message(number) for number in range(4)))
            await collected(intake, 3)
            await intake.stored(names(1))
        async with opened(server) as intake:
            again = await collected(intake, 3)
            assert {block.message for block in again} == {*names(0), *names(2), *names(3)}

    asyncio.run(read())


def test_what_waits_is_kept_alive_and_what_nobody_stores_comes_again(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(server, ack_wait_s=2.0, store_patience_s=6.0) as intake:
            await publish(server, message(0))
            async with asyncio.timeout(20):
                while not intake.status().ready_blocks:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(3.0)
            await collected(intake, 1)
            await asyncio.sleep(4.0)
            assert intake.status().source.redelivered == 0
            (again,) = await collected(intake, 1)
            assert again.message == names(0)[0] and intake.status().given_up == 1
            await intake.stored(names(0))
            await until_acknowledged(server)

    asyncio.run(read())


def test_malformed_messages_are_quarantined_and_the_others_go_on(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(server, ack_wait_s=2.0) as intake:
            await publish(server, message(0), b"garbage", b"", message(1))
            blocks = await collected(intake, 2)
            await intake.stored(block.message for block in blocks)
            await until_acknowledged(server)
            assert intake.status().malformed == 2
            assert await intake.collect(9, 3.0) == []
        client = await server.client()
        js = client.jetstream()
        assert (await js.stream_info(QUARANTINE.name)).state.messages == 2
        copy = await js.get_msg(QUARANTINE.name, 1)
        assert copy.headers is not None and copy.headers["Quarantine-Reason"]
        await client.close()

    asyncio.run(read())


def test_a_message_that_breaks_the_decoder_does_not_end_the_reader(server: NatsServer) -> None:
    def decode(payload: bytes) -> Experience:
        if payload == b"breaks":
            raise ZeroDivisionError
        return DECODE(payload)

    async def read() -> None:
        async with opened(server, decode=decode) as intake:
            await publish(server, b"breaks", message(0))
            await intake.stored(block.message for block in await collected(intake, 1))
            await until_acknowledged(server)
            assert intake.status().malformed == 1

    asyncio.run(read())


def test_a_message_that_was_delivered_often_and_never_stored_is_quarantined(
    server: NatsServer,
) -> None:
    async def read() -> None:
        async with opened(server, max_deliveries=3) as intake:
            await publish(server, message(0))
            await collected(intake, 1)
        for _ in range(2):
            async with opened(server, max_deliveries=3) as intake:
                await collected(intake, 1)
        async with opened(server, max_deliveries=3) as intake:
            await until_acknowledged(server)
            assert await intake.collect(1, 0.2) == [] and intake.status().malformed == 1

    asyncio.run(read())


def test_messages_without_anything_to_learn_are_acknowledged_at_once(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(server, quota=0.4) as intake:
            sent = [message(0, evaluation=True), message(1), message(2), message(3, steps=1)]
            await publish(server, *sent)
            (block,) = await collected(intake, 1)
            assert block.message == names(1)[0]
            await until_acknowledged(server, 1)
            status = intake.status()
            assert (status.messages, status.without_blocks, status.over_quota) == (4, 1, 2)

    asyncio.run(read())


def test_a_flood_waits_at_the_server(server: NatsServer) -> None:
    async def read() -> None:
        async with opened(server, ready_messages=4, max_in_flight=6) as intake:
            await publish(server, *(message(number) for number in range(40)))
            stored = 0
            while stored < 40:
                status = intake.status()
                assert status.in_flight <= 6 and status.ready_blocks <= 4
                blocks = await intake.collect(2, 0.2)
                await intake.stored(block.message for block in blocks)
                stored += len(blocks)
            await until_acknowledged(server)

    asyncio.run(read())


def test_the_same_message_sent_twice_has_the_same_names_and_both_are_acknowledged(
    server: NatsServer,
) -> None:
    async def read() -> None:
        async with opened(server) as intake:
            await publish(server, message(0), message(0))
            first, second = await collected(intake, 2)
            assert first.message == second.message
            await intake.stored([first.message, second.message])
            await until_acknowledged(server)

    asyncio.run(read())


def test_a_server_killed_under_load_loses_no_acknowledged_message(server: NatsServer) -> None:
    published: set[str] = set()
    stored: set[str] = set()
    stop = asyncio.Event()

    async def rover() -> None:
        connection = Connection(StreamSettings(server.url), "rover")
        await connection.open()
        number = 0
        while not stop.is_set():
            try:
                await connection.js.publish(SUBJECT, message(number), timeout=1.0)
            except nats.errors.Error:
                continue  # and send it again
            published.update(names(number))
            number += 1
        await connection.close()

    async def store(intake: Intake) -> None:
        blocks = await intake.collect(8, 0.2)
        stored.update(block.message for block in blocks)
        await intake.stored(block.message for block in blocks)

    async def run() -> None:
        async with opened(server, ack_wait_s=1.0) as intake:
            driving = asyncio.create_task(rover())
            for kill in range(1, 4):
                while len(stored) < 15 * kill:
                    await store(intake)
                server.kill()
                await asyncio.sleep(0.05)
                server.start()
            stop.set()
            await driving
            async with asyncio.timeout(30):
                while not published <= stored:
                    await store(intake)

    asyncio.run(run())
    assert len(published) >= 45


def test_a_source_that_is_of_no_more_use_is_an_error_where_blocks_are_collected(
    server: NatsServer, tmp_path: Path
) -> None:
    async def read() -> None:
        async with opened(server) as intake:
            server.kill()
            configuration = tmp_path / "nats.conf"
            configuration.write_text(configuration.read_text().replace("max_payload", "#"))
            server.start()
            with pytest.raises(StreamError, match="max_payload"):
                async with asyncio.timeout(20):
                    while True:
                        await intake.collect(1, 1.0)

    asyncio.run(read())
