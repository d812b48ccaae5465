"""One record of the journal: a block as bytes that are whole or refused.

Invariant: a decoded block is bit for bit the one that was encoded; a record that lost its end, a
bit or a page is refused. Nothing is unpickled: the header is JSON, arrays have one of a few
number types, and what a record would take in memory is checked before any of it is taken.

    prefix    28 bytes: magic, block id, lengths of header and payload, CRC-32 of all these
    header    JSON: source, sequence, context, core, message (records of old have none: ""); name,
              dtype and shape of every array
    payload   the arrays one after another, as one zstd frame (RFC 8878)
    digest    BLAKE2b (RFC 7693), 128 bits, over all before it

Numbers are little-endian. A record without header and payload is the end mark of a segment.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from rl_cluster.replay.block import Block

MAGIC = b"RLBLOCK1"
DIGEST_BYTES = 16
MAX_BLOCK_BYTES = 1 << 30
"""Arrays of one block; a record that says more is refused."""

_PREFIX = struct.Struct("<8sQIII")
PREFIX_BYTES = _PREFIX.size
_MAX_BLOCK_ID = 1 << 62
_LEVEL = 1
_FIELDS = {
    "actions": ("int32", "float32"),
    "rewards": ("float32",),
    "terminated": ("bool",),
    "truncated": ("bool",),
    "first": ("bool",),
    "policy_versions": ("int32",),
}
_OBSERVATION_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


class RecordError(ValueError):
    """Bytes that are no whole record of a block."""


@dataclass(frozen=True)
class Prefix:
    """The first bytes of a record: whose it is, and how long."""

    block_id: int
    header_bytes: int
    payload_bytes: int

    @property
    def record_bytes(self) -> int:
        """Length of the whole record."""
        return PREFIX_BYTES + self.header_bytes + self.payload_bytes + DIGEST_BYTES

    @property
    def is_end_mark(self) -> bool:
        """It ends a sealed segment, of which `block_id` is the last."""
        return self.header_bytes == 0


def encode(block_id: int, block: Block) -> bytes:
    """The record of a block.

    Raises:
      ValueError: an array of it is not one that could be read back.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in _arrays(block).items()}
    for array in arrays.values():
        _check_dtype(array.dtype.name)
    _check_fields(arrays)
    header = {
        "source": block.source,
        "sequence": block.sequence,
        "context": block.context,
        "core": block.core,
        "message": block.message,
        "arrays": [[name, a.dtype.name, list(a.shape)] for name, a in arrays.items()],
    }
    return _record(block_id, json.dumps(header).encode(), _compress(list(arrays.values())))


def end_mark(last_block_id: int) -> bytes:
    """The record that ends a sealed segment."""
    return _record(last_block_id, b"", b"")


def read_prefix(data: bytes) -> Prefix | None:
    """The prefix that `data` begins with; None where it is none, or is damaged."""
    if len(data) < PREFIX_BYTES or not data.startswith(MAGIC):
        return None
    _, block_id, header_bytes, payload_bytes, crc = _PREFIX.unpack_from(data)
    if crc != zlib.crc32(data[: PREFIX_BYTES - 4]) or block_id > _MAX_BLOCK_ID:
        return None
    return Prefix(block_id, header_bytes, payload_bytes)


def decode(record: bytes) -> Block:
    """The block of a record; its arrays are read-only views of one buffer.

    Raises:
      RecordError: the record is damaged, or holds no block.
    """
    prefix, header = _checked_header(record)
    payload = memoryview(record)[PREFIX_BYTES + prefix.header_bytes : -DIGEST_BYTES]
    try:
        block = _block(header, payload)
        block.check_valid()
    except (ValueError, KeyError, TypeError, IndexError, zstandard.ZstdError) as error:
        raise RecordError(f"whole, but no block: {error!r}") from error
    return block


def check_whole(record: bytes) -> Prefix:
    """Return the prefix of a record.

    Raises:
      RecordError: it is damaged.
    """
    prefix = read_prefix(record)
    if prefix is None or prefix.record_bytes != len(record):
        raise RecordError("torn or altered: its first bytes do not fit its length")
    if _digest(record[:-DIGEST_BYTES]) != record[-DIGEST_BYTES:]:
        raise RecordError("torn or altered: the checksums differ")
    return prefix


def schema_in(record: bytes) -> str:
    """Shape and dtype of a record's observations, as `Block.schema` words it.

    Raises:
      RecordError: the record is damaged, or holds no block.
    """
    _, header = _checked_header(record)
    try:
        shapes = {name: (dtype, shape) for name, dtype, shape in header["arrays"]}
        dtype, shape = shapes["observations"]
        return f"{dtype}[{','.join(str(int(n)) for n in shape[1:])}]"
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"whole, but no block: {error!r}") from error


def message_in(header: bytes) -> str:
    """What a record's header says its block was cut from; "" where it was no message.

    Raises:
      RecordError: the header is damaged so much that it can be seen.
    """
    return str(_parsed(header).get("message", ""))


def _checked_header(record: bytes) -> tuple[Prefix, dict[str, Any]]:
    prefix = check_whole(record)
    return prefix, _parsed(record[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes])


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except ValueError as error:
        raise RecordError(f"whole, but its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise RecordError("whole, but its header is no object")
    return header


def _block(header: dict[str, Any], payload: memoryview) -> Block:
    layout = [_layout(*entry) for entry in header["arrays"]]
    total = sum(nbytes for _, _, _, nbytes in layout)
    if total > MAX_BLOCK_BYTES or zstandard.frame_content_size(payload) != total:
        raise ValueError(f"its header says {total:,} bytes of arrays, its payload another number")
    data = zstandard.ZstdDecompressor().decompress(payload)
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, dtype, shape, nbytes in layout:
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += nbytes
    _check_fields(arrays)
    sequence, context, core = (int(header[name]) for name in ("sequence", "context", "core"))
    if min(sequence, context, core) < 0:
        raise ValueError(f"sequence {sequence}, context {context}, core {core}: none below 0")
    message = str(header.get("message", ""))
    return Block(str(header["source"]), sequence, context, core, **arrays, message=message)


def _layout(name: str, dtype: str, shape: list[int]) -> tuple[str, np.dtype, tuple[int, ...], int]:
    _check_dtype(dtype)
    lengths = tuple(int(length) for length in shape)
    if min(lengths) < 0:
        raise ValueError(f"{name} has shape {lengths}")
    kind = np.dtype(dtype)
    return name, kind, lengths, math.prod(lengths) * kind.itemsize


def _check_dtype(dtype: str) -> None:
    if dtype not in _OBSERVATION_DTYPES:
        raise ValueError(f"{dtype} is none of {', '.join(sorted(_OBSERVATION_DTYPES))}")


def _check_fields(arrays: dict[str, np.ndarray]) -> None:
    if arrays.keys() != {"observations", *_FIELDS}:
        raise ValueError(f"it has the arrays {sorted(arrays)}, not those of a block")
    for name, dtypes in _FIELDS.items():
        if arrays[name].dtype.name not in dtypes:
            raise ValueError(f"{name} are {arrays[name].dtype}, not {' or '.join(dtypes)}")
    if any(arrays[name].ndim != 1 for name in _FIELDS if name != "actions"):
        raise ValueError("arrays beside observations and actions have one dimension")
    if min(arrays["observations"].ndim, arrays["actions"].ndim) < 1:
        raise ValueError("observations and actions have one row or more dimensions")


def _arrays(block: Block) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(block).items() if isinstance(value, np.ndarray)}


def _compress(arrays: list[np.ndarray]) -> bytes:
    """One frame, without a second copy of what is compressed."""
    size = sum(array.nbytes for array in arrays)
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
    parts = [compressor.compress(array.reshape(-1).view(np.uint8).data) for array in arrays]
    return b"".join([*parts, compressor.flush()])


def _record(block_id: int, header: bytes, payload: bytes) -> bytes:
    fields = (MAGIC, block_id, len(header), len(payload))
    crc = zlib.crc32(_PREFIX.pack(*fields, 0)[: PREFIX_BYTES - 4])
    whole = b"".join((_PREFIX.pack(*fields, crc), header, payload))
    return whole + _digest(whole)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
