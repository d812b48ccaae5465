from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nats_server import MIB, NatsServer
from rover_messages import read
from rover_runs import (
    PATIENCE_S,
    STREAM,
    driving,
    everything,
    finish,
    require_whole,
    settings,
    spawn,
    until,
    until_heard,
    until_stored,
)

from envs.rover import link as link_module
from envs.rover.link import Link
from envs.rover.outbox import Outbox
from envs.rover.wire import Message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as running:
        yield running


def test_server_killed_and_restarted_ten_times_under_load(server: NatsServer) -> None:
    async def scenario() -> None:
        with spawn(server.url, "--rovers", "4", "--synthetic", "--hz", "600") as process:
            for _ in range(10):
                await until_heard(server, rovers=4)
                server.kill()
                server.start()
            counts, log = finish(process)
            assert process.returncode == 0, log
            assert counts["batches"] == counts["acknowledged"] and counts["held"] == 0
            assert counts["connections"] >= 4 * 10
            require_whole(await everything(server), counts["batches"])

    asyncio.run(scenario())


def test_server_that_starts_after_the_rover(server: NatsServer) -> None:
    async def scenario() -> None:
        server.kill()
        async with driving(settings(server, hz=600.0)) as [rover]:
            await until(lambda: len(rover.outbox) >= 5)
            server.start()
        require_whole(await everything(server), rover.batches)

    asyncio.run(scenario())


def test_frozen_server_is_given_up_and_gets_everything_when_it_thaws(
    server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "ANSWER_S", 2.0)

    async def scenario() -> None:
        async with driving(settings(server, hz=200.0), number=3) as rovers:
            await until(lambda: all(rover.outbox.acknowledged for rover in rovers))
            server.freeze()
            await until(lambda: caplog.text.count("no connection") >= 3)
            held = [len(rover.outbox) for rover in rovers]
            server.thaw()
            await until(lambda: all(rover.link.connections > 1 for rover in rovers))
        assert min(held) > 0
        require_whole(await everything(server), sum(rover.batches for rover in rovers))

    with caplog.at_level(logging.WARNING, logger="envs.rover.link"):
        asyncio.run(scenario())


def test_connection_to_a_frozen_server_is_closed_with_what_it_did_not_take(
    server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "ANSWER_S", 2.0)
    rover, open_at_once = psutil.Process(), []

    def given_up_twice() -> bool:
        ports = [c.raddr.port for c in rover.net_connections() if c.raddr]
        open_at_once.append(ports.count(server.port))
        return caplog.text.count("no connection") >= 2

    async def scenario() -> None:
        outbox = Outbox(limit_bytes=64 * MIB)
        task = asyncio.create_task(Link({"servers": server.url}, outbox, None).run())
        await until(lambda: "connected" in caplog.text)
        server.freeze()
        await outbox.put(Message("r1", 0, -1, "r1.0", 64, bytes(16 * MIB)))
        await until(given_up_twice)
        monkeypatch.undo()
        server.thaw()
        await asyncio.wait_for(outbox.drained(), PATIENCE_S)
        task.cancel()

    with caplog.at_level(logging.INFO, logger="envs.rover.link"):
        asyncio.run(scenario())
    assert max(open_at_once) == 1


def test_sigterm_sends_the_rest_as_a_shorter_message(server: NatsServer) -> None:
    async def scenario() -> None:
        with spawn(server.url, "--hz", "50") as process:
            await until_stored(server, 2, process)
            await asyncio.sleep(0.3)
            counts, log = finish(process)
            assert process.returncode == 0, log
            messages = await everything(server)
            lengths = [len(read(message.data).rewards) for message in messages]
            assert sum(lengths) == counts["steps"] and set(lengths[:-1]) == {64}
            require_whole(messages, counts["batches"])

    asyncio.run(scenario())


def test_sigterm_without_a_server_tells_what_was_not_sent(server: NatsServer) -> None:
    async def scenario() -> None:
        with spawn(server.url, "--synthetic", "--hz", "600", "--drain-s", "0.5") as process:
            await until_stored(server, 2, process)
            server.kill()
            await asyncio.sleep(0.5)
            counts, _ = finish(process)
            assert process.returncode == 1
            assert counts["held"] == counts["batches"] - counts["acknowledged"] > 0

    asyncio.run(scenario())


def test_rover_that_holds_its_limit_stands_still(server: NatsServer) -> None:
    async def scenario() -> None:
        server.kill()
        async with driving(settings(server, hz=0.0, hold_bytes=MIB)) as [rover]:
            await until(lambda: len(rover.outbox) >= 7)
            await asyncio.sleep(0.3)
            assert rover.outbox.held_bytes <= MIB
            server.start()
            await until(lambda: rover.outbox.acknowledged > 20)
        require_whole(await everything(server), rover.batches)

    asyncio.run(scenario())


# Streams.


def test_missing_streams_are_made_as_the_protocol_says(server: NatsServer) -> None:
    async def scenario() -> None:
        async with driving(settings(server)) as [rover]:
            await until(lambda: rover.outbox.acknowledged)
        client = await server.client()
        streams = {}
        for info in await client.jetstream().streams_info():
            of = info.config
            limits = (of.max_msgs, of.max_bytes / MIB, of.max_age / 86400, of.max_msg_size / MIB)
            streams[of.name] = ([*of.subjects], *limits)
            assert (of.retention, of.storage, of.discard) == ("limits", "file", "old")
        await client.close()
        control = ["rover.status", "rover.heartbeat", "server.sac.status"]
        models = ["models.sac.update", "models.sac.metadata"]
        assert streams == {
            "ROVER_EXPERIENCE": (["rover.experience"], 1000, 10 * 1024, 7, 200),
            "ROVER_MODELS": (models, 100, 2 * 1024, 30, 50),
            "ROVER_CONTROL": (control, 10_000, 100, 1, 1),
        }

    asyncio.run(scenario())


def test_streams_that_exist_are_left_as_they_are(server: NatsServer) -> None:
    async def scenario() -> None:
        client = await server.client()
        jetstream = client.jetstream()
        kept = {"name": STREAM, "subjects": ["rover.>"], "max_msgs": 7, "max_age": 60}
        before = (await jetstream.add_stream(**kept)).config
        async with driving(settings(server, hz=600.0)) as [rover]:
            # `rover.>` takes ROVER_CONTROL's subjects: that stream cannot be made.
            await until(lambda: rover.outbox.acknowledged > 10)
        assert (await jetstream.stream_info(STREAM)).config == before
        await client.close()

    asyncio.run(scenario())


def test_message_that_the_stream_refuses_is_counted_and_not_in_the_way(
    server: NatsServer,
) -> None:
    async def scenario() -> None:
        client = await server.client()
        tight = {"name": STREAM, "subjects": ["rover.experience"], "max_msg_size": 1000}
        await client.jetstream().add_stream(**tight)
        async with driving(settings(server)) as [rover]:
            await until(lambda: rover.outbox.refused >= 2)
        assert rover.outbox.refused == rover.batches and len(rover.outbox) == 0
        await client.close()

    asyncio.run(scenario())


def test_payload_limit_that_is_too_low_ends_the_process_with_the_settings_name(
    tmp_path: Path,
) -> None:
    with (
        NatsServer(tmp_path, max_payload=MIB) as server,
        spawn(server.url, "--synthetic") as process,
    ):
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "max_payload: 64MB" in log and str(MIB) in log and "Traceback" not in log


def test_payload_limit_lowered_later_is_waited_out(server: NatsServer, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with driving(settings(server, hz=600.0)) as [rover]:
            await until(lambda: rover.outbox.acknowledged)
            server.set_max_payload(MIB)
            connections = rover.link.connections
            await until(lambda: rover.link.connections > connections + 1)
            server.set_max_payload(64 * MIB)
        require_whole(await everything(server), rover.batches)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "options",
    [["--user", "me"], ["--hz", "-1"], ["--rover-id", "a b"], ["--nkey-file", "/nowhere"]],
    ids=" ".join,
)
def test_wrong_usage_is_said_at_once(options: list[str]) -> None:
    with spawn("nats://127.0.0.1:1", *options) as process:
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2 and "error:" in log
