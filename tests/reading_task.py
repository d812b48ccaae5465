"""Replay and reader of one task as real actors over a real server, to be hurt."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from nats_server import NatsServer
from ray.exceptions import RayActorError

from rl_cluster.cluster.actors import Actor, read, spawn
from rl_cluster.cluster.messages import ReplayStatus
from rl_cluster.cluster.reader_actor import ReaderActor
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.config import ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.config_rovers import StreamConfig
from rl_cluster.replay.block import schema_of
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.rover_learning import ROVER_SPEC
from rl_cluster.streams.nats_settings import EXPERIENCE, StreamSettings

TIMEOUT_S = 120.0
LENGTH, PLACES = 4, 4000
CONFIG = TaskConfig(
    stream=StreamConfig(source="nats", ack_wait_s=1.0, max_in_flight=16),
    rollout=RolloutConfig(block_length=LENGTH, blocks_per_collect=4),
    replay=ReplayConfig(capacity_transitions=PLACES * LENGTH, disk_reserve_bytes=0),
)


class DyingReader(ReaderActor):
    """A reader that is killed as it hears that blocks are kept, before it acknowledges them.

    Args:
      dies_at: which time it hears of any; 0: it lives.
    """

    def __init__(self, dies_at: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left = dies_at

    async def stored(self, messages: list[str]) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await super().stored(messages)


class Task:
    """Replay and reader of one task over a real server, in lives that follow each other."""

    def __init__(self, server: NatsServer, directory: Path, config: TaskConfig = CONFIG) -> None:
        stream = replace(config.stream, url=server.url)
        self._server, self._config = server, replace(config, stream=stream)
        self._directory = directory
        self._lives = self._doubles_before = 0
        self.replay = self._start_replay()
        self.reader: Actor | None = None

    @property
    def journal(self) -> Path:
        return self._directory / "task" / "replay"

    def read_on(self, dies_at: int = 0) -> None:
        """Give replay another reader."""
        self._lives += 1
        name = f"{self._directory}-reader-{self._lives}"
        where = str(self._directory)
        self.reader = spawn(DyingReader, name, dies_at, "task", self._config, where, self._lives)
        read(self.replay.add_rollout.remote("reader", self._lives, self.reader), TIMEOUT_S)

    def await_reading(self) -> None:
        """Wait until the reader has reached the server, which has its streams then."""
        assert self.reader is not None
        reader = self.reader
        until(lambda: read(reader.status.remote(), TIMEOUT_S) is not None, "a reader at work")

    def kill_replay(self) -> None:
        """As the host does; the reader goes with it, and both come back."""
        self._doubles_before += self.status().doubles
        assert self.reader is not None
        for actor in (self.replay, self.reader):
            kill(actor)
        self.replay = self._start_replay()
        self.read_on()

    def status(self) -> ReplayStatus:
        status: ReplayStatus = read(self.replay.status.remote(), TIMEOUT_S)
        return status

    @property
    def doubles(self) -> int:
        """Blocks that came again and were refused."""
        return self._doubles_before + self.status().doubles

    def await_acknowledged(self) -> None:
        """Wait until the server owes nothing any more."""
        until(lambda: owed(self._server) == 0, "everything acknowledged")

    def end(self) -> None:
        """Nobody has time to write what is not written yet."""
        for actor in filter(None, (self.replay, self.reader)):
            kill(actor)

    def _start_replay(self) -> Actor:
        self._lives += 1
        schema = schema_of(ROVER_SPEC.obs_shape, ROVER_SPEC.obs_dtype)
        place = JournalPlace(self.journal, schema)
        name = f"{self._directory}-replay-{self._lives}"
        replay = spawn(ReplayActor, name, "task", self._config, 0, place)
        read(replay.attach.remote(None), TIMEOUT_S)
        return replay


@contextmanager
def local_cluster(namespace: str) -> Iterator[None]:
    """A small cluster of this test's own, whose workers find the tests' modules."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        address="local",
        namespace=namespace,
        num_cpus=2,
        object_store_memory=1_000_000_000,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def task_of(server: NatsServer, directory: Path, config: TaskConfig = CONFIG) -> Iterator[Task]:
    task = Task(server, directory, config)
    try:
        yield task
    finally:
        task.end()


def kill(actor: Actor) -> None:
    """SIGKILL; returns when the process is gone."""
    with_pid = actor.health.remote()
    try:
        process = psutil.Process(read(with_pid, TIMEOUT_S).pid)
        process.kill()
        psutil.wait_procs([process], timeout=TIMEOUT_S)
    except (RayActorError, psutil.NoSuchProcess):
        pass  # dead already
    ray.kill(actor)


def is_dead(actor: Actor) -> bool:
    try:
        read(actor.health.remote(), TIMEOUT_S)
    except RayActorError:
        return True
    return False


def until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


def owed(server: NatsServer) -> int:
    """Messages that the server holds for the reader, delivered or not."""

    async def ask() -> int:
        client = await server.client()
        durable = StreamSettings(server.url).durable
        info = await client.jetstream().consumer_info(EXPERIENCE.name, durable)
        await client.close()
        return int(info.num_ack_pending or 0) + int(info.num_pending or 0)

    return asyncio.run(ask())
