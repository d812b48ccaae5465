"""A server of one's own: private, on loopback, and the same after a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import nats
import psutil
import pytest

from rl_cluster.streams.server import EmbeddedServer
from rl_cluster.streams.source import StreamError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / 'st"öre')
    server.start()
    yield server
    server.stop()


def process_of(server: EmbeddedServer) -> psutil.Process:
    port = int(server.url.rpartition(":")[2])
    (found,) = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN"
    }
    return psutil.Process(found)


async def published(url: str, count: int) -> None:
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="KEPT", subjects=["kept"])
    for number in range(count):
        await js.publish("kept", str(number).encode())
    await client.close()


async def kept(url: str) -> int:
    client = await nats.connect(url)
    info = await client.jetstream().stream_info("KEPT")
    await client.close()
    return info.state.messages


def test_it_listens_on_loopback_only_and_takes_payloads_of_64_mib(server: EmbeddedServer) -> None:
    process = process_of(server)
    assert {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}

    async def limit() -> int:
        client = await nats.connect(server.url)
        limit = client.max_payload
        await client.close()
        return limit

    assert asyncio.run(limit()) == 64 * 2**20


def test_its_files_are_private(server: EmbeddedServer, tmp_path: Path) -> None:
    directory = tmp_path / 'st"öre'
    assert stat.S_IMODE((directory / "nats.conf").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_what_it_acknowledged_survives_kill_9_on_the_same_port(server: EmbeddedServer) -> None:
    url = server.url
    asyncio.run(published(url, 50))
    process_of(server).kill()
    while server.is_alive:
        os.sched_yield()
    server.start()
    assert server.is_alive and server.url == url
    assert asyncio.run(kept(url)) == 50


def test_a_new_owner_of_the_store_replaces_the_server_of_the_old_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    asyncio.run(published(server.url, 5))
    heir = EmbeddedServer(tmp_path / 'st"öre')
    heir.start()
    try:
        assert not server.is_alive
        assert heir.url == server.url and asyncio.run(kept(heir.url)) == 5
    finally:
        heir.stop()


def test_a_frozen_server_can_be_stopped(server: EmbeddedServer) -> None:
    process = process_of(server)
    process.send_signal(signal.SIGSTOP)
    server.stop()
    assert not process.is_running()


def test_a_port_that_is_taken_is_an_error_if_wanted_and_replaced_if_not(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StreamError, match=r"stream\.port"):
            EmbeddedServer(tmp_path / "wanted", port).start()
        (tmp_path / "had").mkdir()
        (tmp_path / "had" / "port").write_text(str(port))
        server = EmbeddedServer(tmp_path / "had")
        server.start()
        assert server.url != f"nats://127.0.0.1:{port}"
        server.stop()
