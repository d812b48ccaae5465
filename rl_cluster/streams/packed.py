"""MessagePack that strangers sent: read by its fields, in bounded memory, and never executed.

Invariant: whatever the bytes are, reading them gives plain numbers, bytes and text, or
`MalformedMessage`; memory taken stays within a small multiple of the payload. Numpy values have the
form of the msgpack-numpy package (a map of nd, type, shape, data); of its kinds, those that would
be unpickled or name fields are refused. Keys and text may be packed as text or as bytes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

Fields = dict[bytes, Any]
"""A map as it was packed: keys are bytes, text is bytes."""

_ITEMS = 1024
_LENGTH = 64
"""Of maps and lists, whatever a message is."""
_DIMENSIONS = 8
_SHOWN = 60
_KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_DTYPES = {np.dtype(kind).name.encode(): np.dtype(kind) for kind in _KINDS} | {
    (order + kind).encode(): np.dtype(order + kind)
    for kind in _KINDS
    for order in ("", "<", ">", "=", "|")
}
_ID = re.compile(r"[\w.:@+ -]{1,64}")


class MalformedMessage(ValueError):
    """Bytes that are no message of the protocol; the text says what is wrong."""


def unpack_map(payload: bytes, max_bytes: int, max_length: int = _LENGTH) -> Fields:
    """The map that a message is.

    Args:
      payload: all of the message.
      max_bytes: a longer message is refused.
      max_length: of a list in it; 64 are always allowed.

    Raises:
      MalformedMessage: it is none, or larger or of more parts than any message needs.
    """
    if len(payload) > max_bytes:
        raise MalformedMessage(f"{len(payload):,} bytes: {max_bytes:,} are the most")
    max_length = max(_LENGTH, max_length)
    budget = _Budget(_ITEMS + 64 * max_length)
    try:
        fields = msgpack.unpackb(
            payload,
            raw=True,
            max_array_len=max_length,
            max_map_len=_LENGTH,
            list_hook=budget.spend,
            object_hook=budget.spend,
        )
    except (ValueError, TypeError) as error:
        raise MalformedMessage(f"no MessagePack: {type(error).__name__}: {_shown(error)}") from None
    if not isinstance(fields, dict):
        raise MalformedMessage(f"a {type(fields).__name__}, not a map")
    return fields


class _Budget:
    """How many parts a message may still have: a byte of it may become a list of 64."""

    def __init__(self, items: int) -> None:
        self._left = items

    def spend(self, part: Any) -> Any:
        self._left -= 1 + len(part)
        if self._left < 0:
            raise ValueError("of too many parts")
        return part


def numbers_of(value: object, name: str, depth: int = 2) -> np.ndarray:
    """A packed numpy array, or a list of numbers or of rows; of a number type, not yet looked at.

    Args:
      value: what was unpacked.
      name: of the field.
      depth: lists within each other that it may be.

    Raises:
      MalformedMessage: it is neither.
    """
    if isinstance(value, dict):
        return _array(value, name)
    if not isinstance(value, list) or depth == 0:
        raise MalformedMessage(f"{name} is a {type(value).__name__}, not an array")
    if any(isinstance(item, list) or _is_array(item) for item in value):
        return _stacked([numbers_of(row, name, depth - 1) for row in value], name)
    return np.array([number_of(item, name) for item in value], np.float64)


def number_of(value: object, name: str) -> float:
    """A number, plain or of numpy; may be infinite or none at all (NaN).

    Raises:
      MalformedMessage: it is none.
    """
    if isinstance(value, dict) and not value.get(b"nd"):
        numbers = _from_bytes(value, name)
        if len(numbers) == 1:
            value = numbers[0].item()
    if not isinstance(value, int | float):
        raise MalformedMessage(f"{name} is or holds a {type(value).__name__}, not a number")
    return value


def integer_of(value: object, name: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included.

    Raises:
      MalformedMessage: it is none.
    """
    number = number_of(value, name)
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise MalformedMessage(f"{name} is {_shown(number)}, no whole number in {low} to {high}")
    return number


def integers_of(value: object, name: str, low: int, high: int) -> tuple[int, ...]:
    """A list, or a packed array, of whole numbers from `low` to `high`, both included.

    Raises:
      MalformedMessage: it is none.
    """
    numbers: object = numbers_of(value, name).tolist() if _is_array(value) else value
    if not isinstance(numbers, list):
        raise MalformedMessage(f"{name} is {_shown(value)}, no list of whole numbers")
    return tuple(integer_of(number, name, low, high) for number in numbers)


def finite_of(value: object, name: str, bound: float) -> float:
    """A number in ±`bound`.

    Raises:
      MalformedMessage: it is none.
    """
    number = number_of(value, name)
    if not abs(number) <= bound:  # not finite is no less, either
        raise MalformedMessage(f"{name} is {_shown(number)}, beyond ±{bound:g}")
    return float(number)


def text_of(value: object, name: str) -> str:
    """Text that may stand in names and on screen: a word or a few, without slashes.

    Raises:
      MalformedMessage: it is none.
    """
    text = value.decode(errors="replace") if isinstance(value, bytes) else ""
    if not _ID.fullmatch(text):
        raise MalformedMessage(
            f"{name} is {_shown(value)}: 1 to 64 letters, digits, spaces and ._:@+- are a name"
        )
    return text


def bytes_of(value: object, name: str) -> bytes:
    """Bytes.

    Raises:
      MalformedMessage: it is something else.
    """
    if not isinstance(value, bytes):
        raise MalformedMessage(f"{name} is a {type(value).__name__}, not bytes")
    return value


def map_of(value: object, name: str) -> Fields:
    """A map.

    Raises:
      MalformedMessage: it is something else.
    """
    if not isinstance(value, dict):
        raise MalformedMessage(f"{name} is a {type(value).__name__}, not a map")
    return value


def shape_of(value: object, name: str) -> tuple[int, ...]:
    """Lengths of an array's dimensions.

    Raises:
      MalformedMessage: it is something else.
    """
    if not isinstance(value, list) or len(value) > _DIMENSIONS:
        raise MalformedMessage(f"{name} has the shape {_shown(value)}")
    return tuple(integer_of(length, f"{name}'s shape", 0, 1 << 40) for length in value)


def dtype_of(value: object, name: str) -> np.dtype:
    """A number type, by its name or in numpy's short form.

    Raises:
      MalformedMessage: it is something else.
    """
    if not isinstance(value, bytes) or value not in _DTYPES:
        raise MalformedMessage(f"{name} is of type {_shown(value)}, which is none of numbers")
    return _DTYPES[value]


def packed_array(array: np.ndarray) -> dict[bytes, Any]:
    """An array in the form of the msgpack-numpy package."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": list(array.shape),
        b"data": array.tobytes(),
    }


def _is_array(value: object) -> bool:
    return isinstance(value, dict) and bool(value.get(b"nd"))


def _array(value: Fields, name: str) -> np.ndarray:
    shape = shape_of(value.get(b"shape"), name)
    numbers = _from_bytes(value, name)
    if math.prod(shape) != len(numbers):
        raise MalformedMessage(f"{name} has {len(numbers)} numbers, which are not {shape}")
    return numbers.reshape(shape)


def _from_bytes(value: Fields, name: str) -> np.ndarray:
    if kind := value.get(b"kind"):
        raise MalformedMessage(f"{name} is of kind {_shown(kind)}, not of plain numbers")
    dtype = dtype_of(value.get(b"type"), name)
    data = bytes_of(value.get(b"data"), name)
    if len(data) % dtype.itemsize:
        raise MalformedMessage(f"{name} has {len(data)} bytes of {dtype}")
    return np.frombuffer(data, dtype)


def _stacked(rows: list[np.ndarray], name: str) -> np.ndarray:
    if len({row.shape for row in rows}) != 1:
        raise MalformedMessage(f"{name} has rows of different shapes")
    return np.stack(rows)


def _shown(value: object) -> str:
    """Short enough for a log, whatever it is."""
    if isinstance(value, list | dict) or (isinstance(value, bytes) and len(value) > _SHOWN):
        return f"a {type(value).__name__} of {len(value)}"
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
