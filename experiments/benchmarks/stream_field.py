"""What the rovers' rows are measured on: a server, recorded messages in its stream, rovers.

Invariant: the server is the one that runs of ours start, every write synced; its stream is as a
rover makes it; and what server and rovers cost is told apart from what a side does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import nats
import numpy as np
import psutil
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from sides import ROOT, BenchmarkError, ServedSide, Window

from envs.rover.streams import ensure_streams
from envs.rover.wire import BATCH_STEPS, EXPERIENCE, Message, Steps, compress, encode_steps
from envs.rover.world import ACTIONS, BEV_SHAPE, PROPRIO
from rl_cluster.streams.server import EmbeddedServer

STREAM = "ROVER_EXPERIENCE"
TRANSITIONS = BATCH_STEPS - 1
"""Of a message within one episode: the last step's next observation is in no message."""
_LIT_CELLS = 150
"""Of one channel of a sparse view, which makes messages of 0.12 MB."""
_NO_POLICY = -1
_ROVERS_END_S = 120.0


def views(kind: str) -> np.ndarray:
    """(64, 2, 128, 128) float32 of a `sparse` message (0.12 MB) or of a `dense` one (7.5 MB)."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        return rng.random((BATCH_STEPS, *BEV_SHAPE), np.float32)
    channels = np.zeros((BATCH_STEPS * BEV_SHAPE[0], BEV_SHAPE[1] * BEV_SHAPE[2]), np.float32)
    where = rng.integers(channels.shape[1], size=(len(channels), _LIT_CELLS))
    np.put_along_axis(channels, where, rng.random(where.shape, np.float32), axis=1)
    return channels.reshape(BATCH_STEPS, *BEV_SHAPE)


def recorded(kind: str, count: int) -> Iterable[Message]:
    """Messages of one rover within one episode; they differ in all but their views."""
    rng, bev = np.random.default_rng(1), compress(views(kind))
    never = np.zeros(BATCH_STEPS, np.bool_)
    for sequence in range(count):
        steps = Steps(
            bev,
            rng.random((BATCH_STEPS, PROPRIO), np.float32),
            rng.uniform(-1, 1, (BATCH_STEPS, ACTIONS)).astype(np.float32),
            rng.uniform(-1, 1, BATCH_STEPS).astype(np.float32),
            dones=never,
            is_eval=never,
            truncated=never,
        )
        name = f"recorded.{kind}.{sequence}"
        body = encode_steps(steps)
        yield Message("recorded", sequence, _NO_POLICY, name, BATCH_STEPS, body)


class Field:
    """A server with the protocol's streams, in a directory of its own.

    Args:
      directory: of the server's store.
    """

    def __init__(self, directory: Path) -> None:
        self._server = EmbeddedServer(directory)

    def __enter__(self) -> Field:
        """Start the server and make the streams."""
        self._server.start()
        (process,) = (p for p in psutil.Process().children() if _is_server(p))
        self._process = process
        asyncio.run(self._reset())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self._server.stop()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return self._server.url

    def fill(self, kind: str, count: int) -> int:
        """Put recorded messages in place of whatever the stream held; return their bytes."""
        return asyncio.run(self._fill(kind, count))

    def reset(self) -> None:
        """Make the stream anew: no message, no consumer, positions from 1 on."""
        asyncio.run(self._reset())

    def forget_readers(self) -> None:
        """Delete the stream's consumers, so that the next one reads it from its start."""
        asyncio.run(self._forget_readers())

    def sent(self, positions: Iterable[int]) -> dict[int, float]:
        """When the rovers sent the messages at these positions, unix seconds."""
        return asyncio.run(self._sent(positions))

    def turn(self, side: ServedSide, seconds: float, *others: psutil.Process) -> Window:
        """A side's turn; what the server and these others used is not held against the machine."""
        processes = (self._process, *others)
        before_s, start_s = _cpu_s(processes), time.monotonic()
        window = side.turn(seconds)
        own_cores = (_cpu_s(processes) - before_s) / (time.monotonic() - start_s)
        return replace(window, others_cores=max(0.0, window.others_cores - own_cores))

    def server_cpu_s(self) -> float:
        """CPU seconds that the server has used."""
        return _cpu_s([self._process])

    @contextmanager
    def rovers(self, number: int, hz: float = 30.0) -> Any:
        """Synthetic rovers in one process; its `Rovers`."""
        command = [
            sys.executable, "-m", "envs.rover.process", "--url", self.url, "--synthetic",
            "--rover-id", "bench", "--rovers", str(number), "--hz", str(hz), "--drain-s", "60",
        ]  # fmt: skip
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                yield Rovers(process)
            finally:
                process.kill()

    async def _connected(self) -> Client:
        return await nats.connect(self.url)

    async def _reset(self) -> None:
        client = await self._connected()
        jetstream = client.jetstream()
        with suppress(NotFoundError):
            await jetstream.delete_stream(STREAM)
        await ensure_streams(jetstream)
        await client.close()

    async def _fill(self, kind: str, count: int) -> int:
        await self._reset()
        client = await self._connected()
        jetstream, nbytes = client.jetstream(timeout=60), 0
        for message in recorded(kind, count):
            payload = message.payload(time.time())
            headers = {"Nats-Msg-Id": message.message_id}
            await jetstream.publish(EXPERIENCE, payload, headers=headers)
            nbytes += len(payload)
        await client.close()
        return nbytes

    async def _forget_readers(self) -> None:
        client = await self._connected()
        jetstream = client.jetstream()
        for consumer in await jetstream.consumers_info(STREAM):
            await jetstream.delete_consumer(STREAM, consumer.name)
        await client.close()

    async def _sent(self, positions: Iterable[int]) -> dict[int, float]:
        client = await self._connected()
        jetstream, sent = client.jetstream(), {}
        for position in positions:
            message = await jetstream.get_msg(STREAM, position)
            sent[position] = float(msgpack.unpackb(message.data)["metadata"]["sent_at"])
        await client.close()
        return sent


class Rovers:
    """A process of synthetic rovers.

    Args:
      process: it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.process = psutil.Process(process.pid)

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        return _cpu_s([self.process])

    def end(self) -> dict[str, int]:
        """Have it send the rest and end; its counts.

        Raises:
          BenchmarkError: the server did not take every message.
        """
        self._process.terminate()
        told, _ = self._process.communicate(timeout=_ROVERS_END_S)
        if self._process.returncode:
            raise BenchmarkError(f"the rovers ended with {self._process.returncode}: {told}")
        counts: dict[str, int] = json.loads(told)
        return counts


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name().startswith("nats-server")
    return False


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
