"""Reading a journal: its segments by name, their records newest first, one in memory at a time.

Invariant: block ids fall from one block read to the next, whoever wrote what: a segment holds ids
from the one in its name to below the one in the next segment's, and other ids are refused. What is
damaged is refused with file and position, and whole records beside it are still read. Reading
changes nothing on disk.

    000000001234-a1b2c3d4.open      being written, or left by a writer that died: may end torn
    000000001234-a1b2c3d4.sealed    on disk to its end mark, and never written to again
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.replay.block import Block
from rl_cluster.replay.journal_format import (
    MAGIC,
    PREFIX_BYTES,
    Prefix,
    RecordError,
    check_whole,
    decode,
    message_in,
    read_prefix,
    schema_in,
)

SEGMENT_IDS = 256
"""Block ids that one segment may span."""
_NAME = re.compile(r"(?P<first>\d{12,})-(?P<life>[0-9a-f]{8})\.(?P<state>open|sealed)")
_CHUNK_BYTES = 1 << 16
_NO_BOUND = 1 << 63


@dataclass(frozen=True)
class Segment:
    """A file of records."""

    path: Path
    first_id: int
    sealed: bool


@dataclass(frozen=True)
class RestoredBlock:
    """A block that came back whole."""

    block_id: int
    block: Block


@dataclass(frozen=True)
class RefusedRecord:
    """Bytes that are no whole block, and why."""

    reason: str


@dataclass(frozen=True)
class SegmentIndex:
    """Where a segment's records lie."""

    places: tuple[tuple[int, Prefix], ...]
    """Byte position and prefix of every record, without the end mark."""
    damages: tuple[str, ...]
    last_id: int | None
    """Last block id; None where its end is damaged, so that nothing says which."""


def segment_name(first_id: int, life: str, sealed: bool) -> str:
    """File name of a segment; `life`: 8 hexadecimal digits of the writer."""
    return f"{first_id:012d}-{life}.{'sealed' if sealed else 'open'}"


def list_segments(directory: Path) -> list[Segment]:
    """The segments of a journal, oldest first; none where there is no directory."""
    if not directory.is_dir():
        return []
    found = [(name, _NAME.fullmatch(name)) for name in os.listdir(directory)]
    segments = [
        Segment(directory / name, int(match["first"]), match["state"] == "sealed")
        for name, match in found
        if match
    ]
    return sorted(segments, key=lambda segment: (segment.first_id, segment.path.name))


def next_block_id(segments: list[Segment]) -> int:
    """The id above every one that was ever written, also where the record is damaged."""
    if not segments:
        return 0
    newest = segments[-1]
    last = index_segment(newest).last_id
    return newest.first_id + SEGMENT_IDS if last is None else last + 1


def newest_schema(segments: list[Segment]) -> str | None:
    """Schema of the newest block that can be read; None: there is none."""
    for segment in reversed(segments):
        for at, prefix in reversed(index_segment(segment).places):
            try:
                with segment.path.open("rb") as file:
                    return schema_in(_read(file.fileno(), at, prefix.record_bytes))
            except (RecordError, OSError):
                continue
    return None


def newest_first(segments: list[Segment]) -> Iterator[RestoredBlock | RefusedRecord]:
    """Every block of the segments, with falling ids, and what had to be refused.

    A segment that is removed meanwhile has nothing more to give.
    """
    below = _NO_BOUND
    for segment in reversed(segments):
        try:
            yield from _newest_first(segment, below)
        except FileNotFoundError:
            pass
        except OSError as error:
            yield RefusedRecord(f"{segment.path} cannot be read: {error}")
        below = segment.first_id


def messages_in(segments: list[Segment]) -> set[str]:
    """What the blocks of the segments were cut from, by their records' headers alone.

    Costs two short reads a record and no decompression. Payloads are not looked at: a block whose
    payload is damaged counts as there.
    """
    found: set[str] = set()
    for segment in segments:
        with contextlib.suppress(OSError):
            places = index_segment(segment).places
            with segment.path.open("rb") as file:
                for at, prefix in places:
                    header = _read(file.fileno(), at + PREFIX_BYTES, prefix.header_bytes)
                    with contextlib.suppress(RecordError):
                        found.add(message_in(header))
    return found - {""}


def index_segment(segment: Segment) -> SegmentIndex:
    """Walk a segment's prefixes.

    Raises:
      OSError: it cannot be read.
    """
    with segment.path.open("rb") as file:
        return _Walk(segment, file.fileno()).result()


class _Walk:
    """From record to record, and over damage to the next whole prefix."""

    def __init__(self, segment: Segment, descriptor: int) -> None:
        self._segment, self._file = segment, descriptor
        self._size = os.fstat(descriptor).st_size
        self._places: list[tuple[int, Prefix]] = []
        self._damages: list[tuple[int, str]] = []
        self._end_mark: Prefix | None = None
        at = 0
        while at < self._size:
            at = self._step(at)

    def result(self) -> SegmentIndex:
        """What was found."""
        torn = bool(self._damages) and self._damages[-1][0] == self._size
        damages = [reason for _, reason in self._damages]
        if torn and not self._segment.sealed:
            damages.pop()  # what a writer that died was writing: no damage
        if self._segment.sealed and self._end_mark is None:
            damages.append(f"{self._segment.path} is cut off: a sealed segment has an end mark")
        return SegmentIndex(tuple(self._places), tuple(damages), self._last_id(torn))

    def _last_id(self, torn: bool) -> int | None:
        if self._end_mark is not None:
            return self._end_mark.block_id
        if torn or self._segment.sealed:
            return None
        # An empty one takes the id in its name, so that no other segment gets the same name.
        return self._places[-1][1].block_id if self._places else self._segment.first_id

    def _step(self, at: int) -> int:
        prefix = self._prefix_at(at)
        if prefix is None:
            behind = self._next_prefix(at + 1)
            reason = f"{self._segment.path}, bytes {at} to {behind}: no whole record"
            self._damages.append((behind, reason))
            return behind
        if prefix.is_end_mark:
            self._take_end_mark(at, prefix)
        else:
            self._places.append((at, prefix))
        return at + prefix.record_bytes

    def _take_end_mark(self, at: int, prefix: Prefix) -> None:
        try:
            self._end_mark = check_whole(_read(self._file, at, prefix.record_bytes))
        except RecordError as error:
            reason = f"{self._segment.path}, byte {at}: end mark {error}"
            self._damages.append((at + prefix.record_bytes, reason))

    def _prefix_at(self, at: int) -> Prefix | None:
        """The prefix there, if its record fits into the file."""
        prefix = read_prefix(_read(self._file, at, min(PREFIX_BYTES, self._size - at)))
        return prefix if prefix and at + prefix.record_bytes <= self._size else None

    def _next_prefix(self, start: int) -> int:
        """Position of the next whole record's prefix; the file's size where there is none."""
        while start < self._size:
            chunk = _read(self._file, start, min(_CHUNK_BYTES, self._size - start))
            found = chunk.find(MAGIC)
            if found >= 0 and self._prefix_at(start + found) is not None:
                return start + found
            # A magic that is cut by the chunk's end begins within its last bytes.
            start += found + 1 if found >= 0 else max(1, len(chunk) - len(MAGIC) + 1)
        return self._size


def _newest_first(segment: Segment, below: int) -> Iterator[RestoredBlock | RefusedRecord]:
    index = index_segment(segment)
    yield from (RefusedRecord(reason) for reason in index.damages)
    with segment.path.open("rb") as file:
        for at, prefix in reversed(index.places):
            place, block_id = f"{segment.path}, byte {at}", prefix.block_id
            if not segment.first_id <= block_id < below:
                yield RefusedRecord(f"{place}: block {block_id} does not belong into this segment")
                continue
            below = block_id
            try:
                block = decode(_read(file.fileno(), at, prefix.record_bytes))
            except RecordError as error:
                yield RefusedRecord(f"{place}: block {block_id} is {error}")
            else:
                yield RestoredBlock(block_id, block)


def _read(descriptor: int, at: int, size: int) -> bytes:
    """Bytes of a file, fewer only where it ends: the kernel may give less than was asked for."""
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(descriptor, size, at)):
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)
