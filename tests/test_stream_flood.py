"""Rovers that send far more than the learner takes: the newest is kept, and memory stays flat."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chaos.counts import count
from chaos.figures import record_figure
from nats_server import NatsServer
from reading_task import CONFIG, TIMEOUT_S, Task, local_cluster, task_of, until
from stream_messages import experience_of

from rl_cluster.cluster.actors import read
from rl_cluster.cluster.messages import SampleReply, SampleRequest
from rl_cluster.config import LearnerConfig, RolloutConfig
from rl_cluster.streams.codec import Metadata, encode_experience
from rl_cluster.streams.nats_settings import EXPERIENCE

STEPS, BLOCKS, BATCH, WANTED = 64, 20, 16, 20.0
MESSAGES = count(5000, 300)
BLOCK_BYTES = STEPS * 65_548
SUBJECT = EXPERIENCE.subjects[0]
FLEET = replace(
    CONFIG,
    stream=replace(CONFIG.stream, ack_wait_s=30.0),  # nobody dies here: nothing comes again
    rollout=RolloutConfig(block_length=STEPS, blocks_per_collect=4),
    replay=replace(
        CONFIG.replay,
        capacity_transitions=BLOCKS * STEPS,
        min_transitions=STEPS,
        samples_per_insert=WANTED,
    ),
    learner=LearnerConfig(batch=BATCH),
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster("test-stream-flood"):
        yield


def batch_of(seed: int) -> bytes:
    return encode_experience(experience_of(np.zeros(STEPS, np.bool_), None, Metadata(), seed))


class Flood:
    """Synthetic rovers that publish without a pause; a context manager."""

    def __init__(self, server: NatsServer, rovers: int = 4) -> None:
        self._server, self._rovers = server, rovers
        self._payloads = [batch_of(seed) for seed in range(8)]
        self.published = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        client = await self._server.client()
        await asyncio.gather(*(self._rover(client.jetstream(), i) for i in range(self._rovers)))
        await client.close()

    async def _rover(self, jetstream: object, rover: int) -> None:
        number = 0
        while not self._stop.is_set():
            payload, number = self._payloads[number % 8], number + 1
            headers = {"Nats-Msg-Id": f"{rover}-{number}"}
            await jetstream.publish(SUBJECT, payload, 30.0, headers=headers)
            self.published += 1


async def publish(server: NatsServer, payload: bytes) -> int:
    """One message without a name; its position in the stream."""
    client = await server.client()
    position = (await client.jetstream().publish(SUBJECT, payload)).seq
    await client.close()
    return position


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def samples_at_leisure(task: Task) -> int:
    """What a slow learner draws at one go."""
    request = SampleRequest(-1, 0, 0, 1, ())
    reply: SampleReply = read(task.replay.sample.remote(request), TIMEOUT_S)
    return len(reply.samples)


def memory_during(task: Task, flood: Flood) -> dict[str, list[int]]:
    """Private memory of reader and replay, from a full replay until all messages were seen."""
    actors = {"reader": task.reader, "replay": task.replay}
    pids = {name: read(a.health.remote(), TIMEOUT_S).pid for name, a in actors.items()}
    used: dict[str, list[int]] = {name: [] for name in actors}

    def look() -> bool:
        status = task.status()
        samples_at_leisure(task)
        if status.fill == 1.0:
            assert status.transitions <= BLOCKS * STEPS
            for name, pid in pids.items():
                used[name].append(private_bytes(pid))
        return status.env_steps >= MESSAGES * (STEPS - 1)

    until(look, "a flood that is taken in", 10 * TIMEOUT_S)
    return used


@pytest.mark.timeout(count(1800, 300))
def test_a_flood_leaves_memory_flat_and_the_newest_in_replay(tmp_path: Path) -> None:
    twice = batch_of(1000)
    with NatsServer(tmp_path) as server, task_of(server, tmp_path, FLEET) as task:
        task.read_on()
        task.await_reading()
        asyncio.run(publish(server, twice))
        with Flood(server) as flood:
            used = memory_during(task, flood)
        asyncio.run(publish(server, twice))  # long evicted
        last = asyncio.run(publish(server, batch_of(1001)))
        task.await_acknowledged()
        status, newest = task.status(), newest_position(task)
    assert newest == last and status.doubles == 1 and status.fill == 1.0
    assert 0 < status.samples_per_insert < WANTED / 2
    for name, values in used.items():
        half = len(values) // 2
        growth = np.median(values[half:]) - np.median(values[:half])
        assert growth < 10 * BLOCK_BYTES, (name, values)
        record_figure("flood", f"growth of {name}, {MESSAGES} messages", growth / 1e6, "MB")
    record_figure("flood", "samples per insert", status.samples_per_insert, f"of {WANTED:g}")
    record_figure("flood", "published", flood.published, "messages")


def newest_position(task: Task) -> int:
    (ref,) = read(task.replay.newest_blocks.remote(1), TIMEOUT_S)
    return int(read(ref, TIMEOUT_S).sequence)
