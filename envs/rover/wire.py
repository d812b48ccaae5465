"""The rovers' wire protocol as a rover speaks it: names, limits, messages.

Invariant: what arrives is read field by field, bounded and type-checked; nothing is unpickled. A
message keeps its identity and its steps over every sending; only `sent_at` is the sending's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zstandard
from numpy.typing import NDArray

from envs.rover.world import BEV_SHAPE

EXPERIENCE = "rover.experience"
MODEL_UPDATE = "models.sac.update"
MODEL_METADATA = "models.sac.metadata"
SERVER_STATUS = "server.sac.status"

BATCH_STEPS = 64
MAX_PAYLOAD = 64 * 2**20
"""What the server must let through: bytes of one message."""
NO_POLICY = -1
"""The policy version of steps that no policy drove."""
_FAST = 1  # zstd level; the frames are mostly zeros.


class WireError(ValueError):
    """A message that is not what the protocol says, with what was wrong."""


@dataclass(frozen=True)
class Steps:
    """Consecutive steps of one rover: what it saw, what it did, and what came of it.

    Attributes:
        bev: zstd of (n, 2, 128, 128) float32 in C order; see `compress`.
        proprio: (n, 6) float32.
        actions: (n, 2) float32, as driven.
        rewards: (n,) float32, dones: (n,) bool; the results of the actions.
        is_eval: (n,) bool.
        truncated: (n,) bool; done because the time was up.
    """

    bev: bytes
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]
    is_eval: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class Message:
    """One message of `rover.experience`, complete but for the time it is sent.

    Attributes:
        rover_id, sequence, policy_version: go into its metadata.
        message_id: unique over all rovers and their restarts; the same at each sending.
        steps: how many steps it holds.
        body: the encoded steps; see `encode_steps`.
        truncated_steps: those that were done because the time was up; go into its metadata.
    """

    rover_id: str
    sequence: int
    policy_version: int
    message_id: str
    steps: int
    body: bytes
    truncated_steps: tuple[int, ...] = ()

    def payload(self, sent_at_s: float) -> bytes:
        """The message as it is sent at `sent_at_s`, unix seconds."""
        metadata: dict[str, object] = {
            "rover_id": self.rover_id,
            "sequence": self.sequence,
            "policy_version": self.policy_version,
            "sent_at": sent_at_s,
        }
        if self.truncated_steps:
            metadata["truncated_steps"] = list(self.truncated_steps)
        return b"".join([self.body, _pack("metadata"), _pack(metadata)])


@dataclass(frozen=True)
class ModelUpdate:
    """A policy as it is sent to the rovers."""

    onnx_bytes: bytes
    version: int


def compress(bev: NDArray[np.float32]) -> bytes:
    """Views (n, 2, 128, 128) as `Steps.bev` wants them."""
    return zstandard.compress(np.ascontiguousarray(bev).data.cast("B"), level=_FAST)


def encode_steps(steps: Steps) -> bytes:
    """The map of a message up to its last entry, the metadata, which `Message` adds."""
    shape = [len(steps.rewards), *BEV_SHAPE]
    fields: dict[str, object] = {
        "bev": {"data": steps.bev, "shape": shape, "dtype": "float32"},
        "proprio": _array(steps.proprio),
        "actions": _array(steps.actions),
        "rewards": _array(steps.rewards),
        "dones": _array(steps.dones),
        "is_eval": _array(steps.is_eval),
    }
    header = msgpack.Packer().pack_map_header(len(fields) + 1)
    return b"".join([header, *(_pack(name) + _pack(fields[name]) for name in fields)])


def decode_update(payload: bytes) -> ModelUpdate:
    """Read `models.sac.update`; WireError where it is malformed."""
    fields = _unpack_map(payload)
    onnx_bytes = fields.get("onnx_bytes")
    if not isinstance(onnx_bytes, bytes):
        raise WireError(f"onnx_bytes is {type(onnx_bytes).__name__}, want bytes")
    return ModelUpdate(onnx_bytes, _version(fields, "version"))


def decode_metadata(payload: bytes) -> int:
    """The version that `models.sac.metadata` announces; WireError where it is malformed."""
    return _version(_unpack_map(payload), "latest_version")


def decode_status(payload: bytes) -> int:
    """The version that `server.sac.status` tells of; WireError where it is malformed."""
    return _version(_unpack_map(payload), "model_version")


def _array(values: NDArray[Any]) -> dict[bytes, object]:
    # The form of the msgpack-numpy package.
    return {
        b"nd": True,
        b"type": values.dtype.str,
        b"kind": b"",
        b"shape": list(values.shape),
        b"data": values.tobytes(),
    }


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack_map(payload: bytes) -> dict[Any, Any]:
    try:
        fields = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not MessagePack: {error!r}; {len(payload)} bytes") from error
    if not isinstance(fields, dict):
        raise WireError(f"a {type(fields).__name__}, want a map")
    return fields


def _version(fields: dict[Any, Any], name: str) -> int:
    version = fields.get(name)
    if not isinstance(version, int) or isinstance(version, bool):
        raise WireError(f"{name} is {type(version).__name__}, want an integer")
    return version
