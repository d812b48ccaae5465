"""Rovers' messages read by the protocol's document alone, with plain msgpack and zstandard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zstandard
from nats.aio.client import Client
from nats.js.api import RawStreamMsg

FIELDS = ["bev", "proprio", "actions", "rewards", "dones", "is_eval", "metadata"]


@dataclass(frozen=True)
class Received:
    bev: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    is_eval: np.ndarray
    metadata: dict[str, Any]


def read(payload: bytes) -> Received:
    fields = msgpack.unpackb(payload)
    assert list(fields) == FIELDS
    bev = fields["bev"]
    assert bev["dtype"] == "float32" and bev["shape"][1:] == [2, 128, 128]
    raw = zstandard.ZstdDecompressor().decompress(bev["data"])
    arrays = [array(fields[name]) for name in FIELDS[1:-1]]
    views = np.frombuffer(raw, np.float32).reshape(bev["shape"])
    return Received(views, *arrays, metadata=fields["metadata"])


def array(value: dict[bytes, Any]) -> np.ndarray:
    assert value[b"nd"] is True and value[b"kind"] == b""
    return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"])


async def stream_messages(client: Client, stream: str, start: int = 1) -> list[RawStreamMsg]:
    """Every message of a stream, in order."""
    jetstream = client.jetstream()
    state = (await jetstream.stream_info(stream)).state
    numbers = range(max(start, state.first_seq), state.last_seq + 1)
    return [await jetstream.get_msg(stream, number) for number in numbers]
