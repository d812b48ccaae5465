from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgpack
import nkeys
import psutil
import pytest
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError
from nats_server import MIB, NatsServer
from onnx_policies import BROKEN, sound
from rover_messages import Received, read, stream_messages

from envs.rover import link as link_module
from envs.rover.link import Link
from envs.rover.outbox import Outbox
from envs.rover.rover import Rover, RoverSettings, make_rovers
from envs.rover.wire import Message

STREAM = "ROVER_EXPERIENCE"
PATIENCE_S = 120


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as running:
        yield running


def spawn(url: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "envs.rover.process", "--url", url, "--rover-id", "r1"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True)


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


def test_server_killed_and_restarted_ten_times_under_load(server: NatsServer) -> None:
    async def scenario() -> None:
        process = spawn(server.url, "--rovers", "4", "--synthetic", "--hz", "600")
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
        process = spawn(server.url, "--hz", "50")
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
        process = spawn(server.url, "--synthetic", "--hz", "600", "--drain-s", "0.5")
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
    with NatsServer(tmp_path, max_payload=MIB) as server:
        process = spawn(server.url, "--synthetic")
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


# Policies.


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


# Credentials.


def credentials(kind: str, folder: Path) -> tuple[str, list[str]]:
    """A line of the server's configuration, and the rover's options."""
    secret = folder / "secret"
    if kind == "nkey":
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public = nkeys.from_seed(bytearray(seed)).public_key.decode()
        secret.write_bytes(seed)
        return f'authorization {{ users: [ {{ nkey: "{public}" }} ] }}', [
            "--nkey-file",
            str(secret),
        ]
    secret.write_text("open sesame\n")
    if kind == "token":
        return 'authorization { token: "open sesame" }', ["--token-file", str(secret)]
    line = 'authorization { user: "rover", password: "open sesame" }'
    return line, ["--user", "rover", "--password-file", str(secret)]


@pytest.mark.parametrize("kind", ["password", "token", "nkey"])
def test_rover_shows_its_credentials(kind: str, tmp_path: Path) -> None:
    line, options = credentials(kind, tmp_path)
    with NatsServer(tmp_path, extra=[line]) as server:
        require_delivery(server.url, *options)
        refused = spawn(server.url, "--synthetic", "--drain-s", "0.1")
        counts, log = finish_after(refused, "Authorization Violation")
    assert counts["acknowledged"] == 0 and "sesame" not in log


def test_rover_speaks_tls_and_trusts_only_its_authority(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=rover test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*request, *names, *files], check=True, capture_output=True)
    line = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with NatsServer(tmp_path, extra=[line]) as server:
        require_delivery(server.url, "--tls-ca", str(certificate))
        stranger = spawn(server.url, "--synthetic", "--drain-s", "0.1")
        counts, _ = finish_after(stranger, "CERTIFICATE_VERIFY_FAILED")
    assert counts["acknowledged"] == 0


def require_delivery(url: str, *options: str) -> None:
    process = spawn(url, "--synthetic", "--hz", "600", *options)
    counts, log = finish_after(process, "connected")
    assert process.returncode == 0 and counts["acknowledged"] == counts["batches"], log


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


@pytest.mark.parametrize(
    "options",
    [["--user", "me"], ["--hz", "-1"], ["--rover-id", "a b"], ["--nkey-file", "/nowhere"]],
    ids=" ".join,
)
def test_wrong_usage_is_said_at_once(options: list[str]) -> None:
    process = spawn("nats://127.0.0.1:1", *options)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and "error:" in log
