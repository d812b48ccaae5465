"""Rovers as processes and in this process, and what of theirs a stream holds."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError
from nats_server import MIB, NatsServer
from rover_messages import read, stream_messages

from envs.rover.rover import Rover, RoverSettings, make_rovers

STREAM = "ROVER_EXPERIENCE"
PATIENCE_S = 120


@contextmanager
def spawn(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A rover process; killed at the end if it still runs."""
    command = [sys.executable, "-m", "envs.rover.process", "--url", url, "--rover-id", "r1"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, int], str]:
    """SIGTERM; the counts on standard output, and the log."""
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate(timeout=PATIENCE_S)
    return json.loads(out), log


def settings(server: NatsServer, **changes: object) -> RoverSettings:
    plain = RoverSettings(
        connection={"servers": server.url},
        hz=30.0,
        hold_bytes=64 * MIB,
        drain_s=PATIENCE_S,
        synthetic=True,
    )
    return replace(plain, **changes)


@asynccontextmanager
async def driving(settings: RoverSettings, number: int = 1) -> AsyncIterator[list[Rover]]:
    """Rovers that drive in this process, until the block ends and all is acknowledged."""
    rovers, stop = make_rovers("r1", number, 1, settings), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for rover in rovers:
            tasks.create_task(rover.run(stop))
        try:
            yield rovers
        finally:
            stop.set()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def until_stored(server: NatsServer, most: int, process: subprocess.Popen[str]) -> None:
    """Wait until the stream has so many messages."""
    client = await server.client()
    jetstream = client.jetstream()
    async with asyncio.timeout(PATIENCE_S):
        while await stored(jetstream) < most:
            assert process.poll() is None
            await asyncio.sleep(0.05)
    await client.close()


async def until_heard(server: NatsServer, rovers: int) -> None:
    """Wait until so many different rovers have sent something from now on."""
    client = await server.client()
    subscription = await client.subscribe("rover.experience")
    heard: set[str] = set()
    async with asyncio.timeout(PATIENCE_S):
        while len(heard) < rovers:
            heard.add(read((await subscription.next_msg(PATIENCE_S)).data).metadata["rover_id"])
    await client.close()


async def stored(jetstream: JetStreamContext) -> int:
    try:
        return (await jetstream.stream_info(STREAM)).state.last_seq
    except NotFoundError:
        return 0


async def everything(server: NatsServer) -> list[RawStreamMsg]:
    client = await server.client()
    try:
        return await stream_messages(client, STREAM)
    finally:
        await client.close()


def require_whole(messages: list[RawStreamMsg], batches: int) -> None:
    """Every batch is there exactly once: none lost, and none double under its message id."""
    ids = [message.headers["Nats-Msg-Id"] for message in messages]
    assert len(ids) == len(set(ids)) == batches
    sequences = defaultdict(set)
    for message in messages:
        metadata = read(message.data).metadata
        sequences[metadata["rover_id"]].add(metadata["sequence"])
    assert all(found == set(range(len(found))) for found in sequences.values())


def finish_after(process: subprocess.Popen[str], line: str) -> tuple[dict[str, int], str]:
    """SIGTERM as soon as the log has `line`."""
    assert process.stderr is not None
    seen = ""
    while line not in seen:
        read_line = process.stderr.readline()
        assert read_line, seen
        seen += read_line
    counts, log = finish(process)
    return counts, seen + log
