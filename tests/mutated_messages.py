"""Rovers' messages, broken: by bit, by byte, by part, and on purpose.

Every mutation follows from the generator alone, so a failing one can be made again.
"""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard
from stream_messages import documented, experience_of, nd

BOMB_BYTES = 1 << 30


class LeavesAMark:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.mkdir, (self._path,)  # type: ignore[return-value]


def pickled_arrays(mark: Path) -> list[Any]:
    """An array of objects in each form in which a reader might unpickle it."""
    objects = np.array([LeavesAMark(mark)], object)
    pickles = [pickle.dumps(objects), pickle.dumps(LeavesAMark(mark)), objects.dumps()]
    forms: list[Any] = []
    for data in pickles:
        for kind in (b"O", "O", b"", None):
            fields = {b"nd": True, b"type": "|O", b"kind": kind, b"shape": [1], b"data": data}
            forms += [fields, fields | {b"type": data}, fields | {b"nd": False}]
            forms.append({k.decode(): v for k, v in fields.items()})
        forms.append(data)
    return forms


def zeros_frame(nbytes: int, says_its_size: bool) -> bytes:
    """A zstd frame of so many zeros, made without as much memory."""
    compressor = zstandard.ZstdCompressor(write_content_size=says_its_size)
    stream = compressor.compressobj(size=nbytes if says_its_size else -1)
    chunk = bytes(1 << 20)
    parts = [stream.compress(chunk) for _ in range(nbytes // len(chunk))]
    return b"".join([*parts, stream.flush()])


def nested(depth: int) -> bytes:
    """Maps or lists within each other, deeper than a packer would go."""
    return b"\x81\xa3bev" * (depth // 2) + b"\x91" * (depth // 2) + b"\x00"


class Mutations:
    """Endless broken messages.

    Args:
      seed: of all choices.
      mark: what pickled objects would make.
    """

    def __init__(self, seed: int, mark: Path) -> None:
        self._random = random.Random(seed)
        self._whole = [documented(experience_of([False, True], [i > 0, i > 1])) for i in range(3)]
        for name in ("proprio", "actions", "rewards", "dones", "is_eval"):
            self._whole[1][name] = nd(getattr(experience_of([False, True]), name))
        self._whole[1]["metadata"] = {
            "rover_id": "r1", "sequence": 3, "policy_version": 4, "sent_at": 1.0
        }  # fmt: skip
        self._packed = [msgpack.packb(fields) for fields in self._whole]
        self._packed += [
            msgpack.packb({"onnx_bytes": bytes(99), "version": 3}),
            msgpack.packb({"latest_version": 3, "timestamp": 1.0}),
            msgpack.packb({"status": "ready", "model_version": 1, "buffer_size": 2}),
        ]
        self._bombs = [zeros_frame(BOMB_BYTES, says) for says in (True, False)]
        self._values = [*pickled_arrays(mark), *self._bombs, *_ODD_VALUES]
        self._pickles = [each for each in pickled_arrays(mark) if isinstance(each, bytes)]

    def next(self) -> bytes:
        """The next one."""
        how = self._random.choice(
            [self._flip, self._cut, self._insert, self._splice, self._huge, *[self._swap] * 6]
        )
        return how()

    def _flip(self) -> bytes:
        data = bytearray(self._random.choice(self._packed))
        for _ in range(self._random.choice([1, 1, 2, 8])):
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(data)

    def _cut(self) -> bytes:
        data = self._random.choice(self._packed)
        return data[: self._random.randrange(len(data))]

    def _insert(self) -> bytes:
        data, at = self._random.choice(self._packed), self._random.randrange(40)
        return data[:at] + self._random.randbytes(self._random.randrange(1, 9)) + data[at:]

    def _splice(self) -> bytes:
        one, other = self._random.choices([*self._packed, *self._pickles], k=2)
        return one[: self._random.randrange(len(one))] + other[self._random.randrange(len(other)) :]

    def _huge(self) -> bytes:
        """A length that says more than there is; or depth."""
        if self._random.random() < 0.1:
            return b"\x81\xa3bev" + nested(self._random.choice([30, 900, 1_100, 100_000]))
        data = self._random.choice(self._packed)
        at = self._random.randrange(len(data))
        header = self._random.choice(b"\xc6\xc9\xdb\xdd\xdf").to_bytes()
        length = self._random.choice([0xFFFFFFFF, 0x7FFFFFFF, 1 << 24, 600]).to_bytes(4)
        return data[:at] + header + length + data[at:]

    def _swap(self) -> bytes:
        """Well packed, with parts that are something else."""
        fields = dict(self._random.choice(self._whole))
        for _ in range(self._random.choice([1, 1, 2])):
            fields = self._swapped(fields)
        return msgpack.packb(fields)

    def _swapped(self, part: Any) -> Any:
        """The same with one of its parts, or a part of that, replaced."""
        if self._random.random() < 0.3 or not isinstance(part, dict | list) or not part:
            return self._random.choice(self._values)
        if isinstance(part, list):
            at = self._random.randrange(len(part))
            return [*part[:at], self._swapped(part[at]), *part[at + 1 :]]
        name = self._random.choice(list(part))
        if self._random.random() < 0.1:
            return {key: value for key, value in part.items() if key != name}
        return part | {name: self._swapped(part[name])}


_ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**64 - 1, -(2**63), math.nan, math.inf, -math.inf, 1e308, 65505.0, 1.5,
    "", "O", "|O", "V8", "f4,f4", "float32", "../../etc/passwd", "\x00", "é" * 70, b"", b"\xff" * 9,
    [], [[]], [[[]]], [0.5, 0.5], [[0.5] * 2] * 2, [[0.0] * 6] * 2, [2, 2, 128, 128],
    [1 << 40, 1 << 40, 128, 128], [0, 2, 128, 128], [-2, 2, 128, 128], [[0] * 500] * 500,
    {}, {b"nd": True}, {b"nd": False, b"type": "<f8", b"data": bytes(8)}, {"nd": True, "kind": "O"},
    {b"complex": True, b"data": "1j"}, nd(np.zeros(2)), nd(np.full(2, np.nan)),
    nd(np.zeros((2, 6))), nd(np.zeros(2), shape=[1 << 62, 1 << 62]), nd(np.zeros(0)),
    nd(np.float64(1)),
    msgpack.ExtType(5, b"abc"), msgpack.Timestamp(3, 4),
]  # fmt: skip
