"""The rovers' messages as bytes and back (profile `ros2_rover`).

Invariants: what `decode_experience` returns is of one length, finite and in range, so that float16
holds it; anything else is `MalformedMessage`. What a message would take in memory is checked before
any of it is taken. Nothing is unpickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zstandard

from rl_cluster.streams.packed import (
    Fields,
    bytes_of,
    dtype_of,
    finite_of,
    integer_of,
    integers_of,
    map_of,
    numbers_of,
    packed_array,
    shape_of,
    text_of,
    unpack_map,
)
from rl_cluster.streams.packed import MalformedMessage as MalformedMessage

BEV_SHAPE = (2, 128, 128)
"""Of one step's bird's-eye view."""
PROPRIO = 6
"""Numbers of one step about the rover itself."""
ACTIONS = 2
"""Track commands of one step."""

MAX_MODEL_BYTES = 50 << 20
"""As the stream of policies takes them."""
_BEV_BYTES = math.prod(BEV_SHAPE) * 4
_MAX_FLOAT16 = 65504.0
_COMMAND_BOUND = 1.001
_MAX_WINDOW_BYTES = 1 << 26
_LEVEL = 1
_MAX_INT32, _MAX_INT64 = 2**31 - 1, 2**63 - 1
_MAX_TIME_S = 1e12
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodeLimits:
    """What one message may take."""

    max_message_bytes: int = 64 << 20
    """Packed, and its bird's-eye views unpacked."""

    @property
    def max_steps(self) -> int:
        """Steps of one message."""
        return max(1, self.max_message_bytes // _BEV_BYTES)


@dataclass(frozen=True)
class Metadata:
    """What a message says of itself; None where it doesn't."""

    rover_id: str | None = None
    sequence: int | None = None
    """Grows by one with each message of the rover."""
    policy_version: int | None = None
    """-1: none yet."""
    sent_at_s: float | None = None
    """Unix seconds by the rover's clock."""
    truncated_steps: tuple[int, ...] = ()
    """Which of the done steps ended by a limit of time: what comes after them is worth something
    (Pardo et al. 2018). Without it every done is an end."""


@dataclass(frozen=True)
class Experience:
    """N consecutive steps of one rover: what was seen, done, and what came of it."""

    bev: np.ndarray
    """(N, 2, 128, 128) float32: bird's-eye views."""
    proprio: np.ndarray
    """(N, 6) float32: nearest range, previous commands, measured velocities, widest gap."""
    actions: np.ndarray
    """(N, 2) float32 in [-1, 1]: track commands as driven."""
    rewards: np.ndarray
    """(N,) float32 in [-1, 1], for the step's action."""
    dones: np.ndarray
    """(N,) bool: the step's action ended the episode."""
    is_eval: np.ndarray
    """(N,) bool: driven by the deterministic policy."""
    metadata: Metadata = Metadata()

    @property
    def steps(self) -> int:
        """N."""
        return len(self.rewards)


@dataclass(frozen=True)
class PolicyUpdate:
    """A policy on its way to the rovers (`models.sac.update`)."""

    onnx_bytes: bytes
    version: int


@dataclass(frozen=True)
class PolicyMetadata:
    """That there is a policy (`models.sac.metadata`)."""

    latest_version: int
    timestamp_s: float
    """Unix seconds."""


@dataclass(frozen=True)
class ServerStatus:
    """What the training side does (`server.sac.status`)."""

    status: str
    """`ready` or `training`."""
    model_version: int
    buffer_size: int
    """Transitions in replay."""
    total_steps: int
    """Steps that arrived."""


def decode_experience(payload: bytes, limits: DecodeLimits) -> Experience:
    """The steps of an `rover.experience` message; arrays may be read-only.

    Raises:
      MalformedMessage: it is none.
    """
    fields = unpack_map(payload, limits.max_message_bytes, limits.max_steps)
    metadata = fields.get(b"metadata")
    bev = _bev(_field(fields, "bev"), limits)
    steps = len(bev)

    def numbers(name: str, tail: tuple[int, ...], bound: float) -> np.ndarray:
        return _bounded(numbers_of(_field(fields, name), name), name, (steps, *tail), bound)

    dones = _flags(numbers("dones", (), 1), "dones")
    return Experience(
        bev,
        numbers("proprio", (PROPRIO,), _MAX_FLOAT16),
        numbers("actions", (ACTIONS,), _COMMAND_BOUND).clip(-1, 1),
        numbers("rewards", (), _COMMAND_BOUND).clip(-1, 1),
        dones,
        _flags(numbers("is_eval", (), 1), "is_eval"),
        Metadata() if metadata is None else _metadata(map_of(metadata, "metadata"), dones),
    )


def encode_experience(experience: Experience) -> bytes:
    """The message of some steps."""
    bev, metadata = experience.bev, experience.metadata
    known = {
        "rover_id": metadata.rover_id,
        "sequence": metadata.sequence,
        "policy_version": metadata.policy_version,
        "sent_at": metadata.sent_at_s,
        "truncated_steps": list(metadata.truncated_steps) or None,
    }
    fields: dict[str, Any] = {
        "bev": {
            "data": zstandard.ZstdCompressor(level=_LEVEL).compress(bev.tobytes()),
            "shape": list(bev.shape),
            "dtype": "float32",
        },
        "metadata": {name: value for name, value in known.items() if value is not None},
    }
    for name in ("proprio", "actions", "rewards", "dones", "is_eval"):
        fields[name] = packed_array(getattr(experience, name))
    return _packed(fields)


def encode_update(update: PolicyUpdate) -> bytes:
    """The message of a policy."""
    return _packed({"onnx_bytes": update.onnx_bytes, "version": update.version})


def decode_update(payload: bytes) -> PolicyUpdate:
    """The policy of a message.

    Raises:
      MalformedMessage: it is none.
    """
    fields = unpack_map(payload, MAX_MODEL_BYTES)
    version = integer_of(_field(fields, "version"), "version", 0, _MAX_INT64)
    return PolicyUpdate(bytes_of(_field(fields, "onnx_bytes"), "onnx_bytes"), version)


def encode_metadata(metadata: PolicyMetadata) -> bytes:
    """The message that there is a policy."""
    return _packed(
        {"latest_version": metadata.latest_version, "timestamp": metadata.timestamp_s},
    )


def decode_metadata(payload: bytes) -> PolicyMetadata:
    """Which policy a message says there is.

    Raises:
      MalformedMessage: it says none.
    """
    fields = unpack_map(payload, _SMALL_BYTES)
    version = integer_of(_field(fields, "latest_version"), "latest_version", 0, _MAX_INT64)
    timestamp_s = finite_of(_field(fields, "timestamp"), "timestamp", _MAX_TIME_S)
    return PolicyMetadata(version, timestamp_s)


def encode_status(status: ServerStatus) -> bytes:
    """The message of a status."""
    return _packed(dict(vars(status)))


def decode_status(payload: bytes) -> ServerStatus:
    """The status of a message.

    Raises:
      MalformedMessage: it has none.
    """
    fields = unpack_map(payload, _SMALL_BYTES)
    counts = ("model_version", "buffer_size", "total_steps")
    numbers = [integer_of(_field(fields, name), name, -1, _MAX_INT64) for name in counts]
    return ServerStatus(text_of(_field(fields, "status"), "status"), *numbers)


def _packed(fields: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _field(fields: Fields, name: str) -> object:
    try:
        return fields[name.encode()]
    except KeyError:
        raise MalformedMessage(f"it has no {name}") from None


def _bev(value: object, limits: DecodeLimits) -> np.ndarray:
    """(N, 2, 128, 128) float32, N > 0: of the documented map, or of a packed array."""
    packed = map_of(value, "bev")
    shape = shape_of(_field(packed, "shape"), "bev")
    if shape[1:] != BEV_SHAPE or not 0 < shape[0] <= limits.max_steps:
        raise MalformedMessage(f"bev has the shape {shape}, not 1 to {limits.max_steps} views")
    if b"nd" in packed:
        views = numbers_of(packed, "bev")
    else:
        dtype = dtype_of(_field(packed, "dtype"), "bev")
        nbytes = math.prod(shape) * dtype.itemsize
        data = _unzipped(bytes_of(_field(packed, "data"), "bev"), nbytes)
        views = np.frombuffer(data, dtype).reshape(shape)
    return _bounded(views, "bev", shape, _MAX_FLOAT16)


def _unzipped(data: bytes, nbytes: int) -> bytes:
    """`nbytes` of memory, and no more than they, whatever the frame says of itself."""
    try:
        said = zstandard.frame_content_size(data)
        if said not in (-1, nbytes):  # -1: it doesn't say
            raise MalformedMessage(f"bev unpacks to {said:,} bytes, not to {nbytes:,}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        unzipped = unpacker.decompress(data, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedMessage(f"bev is no whole zstd frame: {error}") from None
    if len(unzipped) != nbytes:
        raise MalformedMessage(f"bev unpacks to {len(unzipped):,} bytes, not to {nbytes:,}")
    return unzipped


def _bounded(numbers: np.ndarray, name: str, shape: tuple[int, ...], bound: float) -> np.ndarray:
    """float32, of that shape, in ±`bound`."""
    if numbers.shape != shape:
        raise MalformedMessage(f"{name} has the shape {numbers.shape}, not {shape}")
    # What is not a number is neither above nor below.
    with np.errstate(invalid="ignore"):
        inside = numbers.min() >= -bound and numbers.max() <= bound
    if not inside:
        raise MalformedMessage(f"{name} is not finite, or beyond ±{bound:g}")
    return numbers.astype(np.float32, copy=False)


def _flags(numbers: np.ndarray, name: str) -> np.ndarray:
    flags: np.ndarray = numbers == 1
    if not (flags | (numbers == 0)).all():
        raise MalformedMessage(f"{name} are not all true or false")
    return flags


def _metadata(fields: Fields, dones: np.ndarray) -> Metadata:
    """What is known of it; keys of others are theirs."""

    def known(name: str) -> object:
        return fields.get(name.encode())

    rover_id, sequence = known("rover_id"), known("sequence")
    version, sent_at = known("policy_version"), known("sent_at")
    return Metadata(
        None if rover_id is None else text_of(rover_id, "rover_id"),
        None if sequence is None else integer_of(sequence, "sequence", 0, _MAX_INT64),
        None if version is None else integer_of(version, "policy_version", -1, _MAX_INT32),
        None if sent_at is None else finite_of(sent_at, "sent_at", _MAX_TIME_S),
        _truncated(known("truncated_steps"), dones),
    )


def _truncated(value: object, dones: np.ndarray) -> tuple[int, ...]:
    if value is None:
        return ()
    steps = integers_of(value, "truncated_steps", 0, len(dones) - 1)
    for step in steps:
        if not dones[step]:
            raise MalformedMessage(f"truncated_steps has {step}, which is not done")
    return steps
