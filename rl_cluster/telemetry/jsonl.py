"""Files of one JSON object per line, which only grow.

Invariant: every line but the last is whole, strict JSON (no NaN, no Infinity). A host that dies
while a line is written leaves a torn last one: readers pass over it, and the next writer cuts it
off before it appends.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16


def strict(value: Any) -> Any:
    """Return the value with every float that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


class JsonLines:
    """Appends objects to a file; each is with the operating system when `append` returns.

    One instance may be shared by threads: a line is one write in append mode.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def append(self, item: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
          OSError: the disk is full or gone; nothing of the line is left in the file.
        """
        line = json.dumps(strict(item), allow_nan=False, ensure_ascii=False).encode() + b"\n"
        written = self._file.write(line)
        if written != len(line):
            self._file.truncate(self._file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def sync(self) -> None:
        """Return when the lines would survive a power failure."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, in order; none where there is no file.

    Raises:
      ValueError: a line other than a torn last one is not a JSON object; the message names it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _parsed(line, f"{path}, line {number}")


def read_new(path: Path, start: int, most_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file that grows, from a line's beginning on.

    Args:
      start: byte of the file; 0, or what this returned before.
      most_bytes: to read at once; more than any line has.

    Returns:
      The objects, and the byte behind them.

    Raises:
      ValueError: as `read_lines`.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole = file.read(most_bytes).rpartition(b"\n")[0]
    lines = whole.split(b"\n") if whole else []
    items = [_parsed(line, f"{path}, line behind byte {start}") for line in lines]
    return items, start + len(whole) + bool(lines)


def put_aside(path: Path) -> Path:
    """Move a damaged file out of the way; return where it is now.

    Raises:
      OSError: it cannot be moved.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    return aside


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}): mend or remove the line") from error
    if not isinstance(item, dict):
        raise ValueError(f"{place} holds {type(item).__name__}, not an object: remove the line")
    return item


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
