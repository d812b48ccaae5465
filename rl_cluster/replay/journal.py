"""The journal: every block once on disk, as it comes, so that a resumed run finds its replay full.

Invariants: a crash at any point leaves every sealed segment whole and the open one readable up to
its last whole record. No error of a disk leaves `append`: the journal pauses, says so once, skips
blocks, and goes on when there is room; after a failed write nothing of the torn record remains.
What a failed sync leaves unsure can be taken back and appended again; no sync is tried twice, since
the second would say that all is well (the kernel counts pages that it failed to write as clean). A
writer appends only to a segment that it made itself, under ids above all that were ever written.

There is no manifest: names carry the first id, and block n is live while n is above the newest id
less the replay's blocks; so a segment is gone when its successor's first id is below that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rl_cluster.disk import free_bytes, sync_directory
from rl_cluster.replay.block import Block
from rl_cluster.replay.journal_format import encode, end_mark
from rl_cluster.replay.journal_segments import (
    SEGMENT_IDS,
    RefusedRecord,
    RestoredBlock,
    list_segments,
    messages_in,
    newest_first,
    newest_schema,
    next_block_id,
    segment_name,
)

SEGMENT_BYTES = 16 << 20
FLUSH_S = 2.0
RETRY_S = 5.0


class JournalSchemaError(ValueError):
    """The journal holds another kind of observation than the task has."""


class Fence(Protocol):
    """Says whether this writer is still the one that counts."""

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Keep it so within the context; raises where another has taken over."""


@dataclass(frozen=True)
class JournalPlace:
    """Where a journal lies, and what it holds."""

    directory: Path
    schema: str
    """Of its blocks, as `schema_of` words it."""
    fence: Fence | None = None


@dataclass(frozen=True)
class JournalLimits:
    """What a journal may take, and how often it syncs."""

    max_bytes: int
    """Of all its files; the oldest go first."""
    reserve_bytes: int
    """Free disk that it leaves to others."""
    segment_bytes: int = SEGMENT_BYTES
    """A segment is sealed from this size on; a tenth of `max_bytes` at most."""
    flush_s: float = FLUSH_S
    """A crash of the host loses at most so much."""
    retry_s: float = RETRY_S
    """Seconds between two looks for room while it pauses."""


@dataclass(frozen=True)
class JournalNotice:
    """What a person should hear of."""

    kind: str
    cause: str
    action: str
    detail: str = ""


@dataclass
class _Held:
    """A segment on disk, as the writer remembers it."""

    path: Path
    first_id: int
    nbytes: int
    synced_bytes: int = 0


class Journal:
    """Writer of one task's journal; for one thread.

    Args:
      place: the directory need not exist.
      limits: of disk and time.
      clock: seconds that only grow.

    Raises:
      JournalSchemaError: the newest block there is of another schema.
      OSError: the directory cannot be made or read.
    """

    def __init__(
        self,
        place: JournalPlace,
        limits: JournalLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._fence = Path(place.directory), place.fence
        self._limits, self._clock = limits, clock
        self._segment_bytes = max(1, min(limits.segment_bytes, limits.max_bytes // 10))
        self._directory.mkdir(parents=True, exist_ok=True)
        self._found = list_segments(self._directory)
        _check_schema(self._directory, newest_schema(self._found), place.schema)
        self.next_block_id = next_block_id(self._found)
        self._held = deque(
            _Held(segment.path, segment.first_id, segment.path.stat().st_size)
            for segment in self._found
        )
        self._life = secrets.token_hex(4)
        self._file: int | None = None
        self._last_id = self._skipped_id = -1
        self.nbytes = sum(held.nbytes for held in self._held)
        """Of all segments."""
        self._new_name = False
        self._unsynced: list[int] = []
        self._unsure: list[int] = []
        self._flushed_s = self._tried_s = clock()
        self._trimmed, self._lacking_before = False, 0
        self._notices: deque[JournalNotice] = deque()
        self.paused = False
        self.lacking = 0
        """Blocks that this writer had to skip."""

    @property
    def blocks(self) -> int:
        """Block ids between the oldest on disk and the newest."""
        oldest = self._held[0].first_id if self._held else self.next_block_id
        return self.next_block_id - oldest

    def found(self) -> Iterator[RestoredBlock | RefusedRecord]:
        """Blocks of earlier writers, newest first; may be read while this one writes."""
        return newest_first(self._found)

    def messages(self) -> set[str]:
        """Messages of the blocks of earlier writers, those with damaged payload included.

        So that one that is delivered again is known before `found` has brought its block back. Its
        cost is in `messages_in`.
        """
        return messages_in(self._found)

    def append(self, block_id: int, block: Block) -> bool:
        """Write a block; False where it was skipped: the newest skipped one may be tried again.

        Raises:
          ValueError: the id is not above all earlier ones, or the block cannot be written at all.
          Exception: what the fence raises where another writer has taken over.
        """
        again = block_id == self._skipped_id
        if block_id < self.next_block_id and not again:
            raise ValueError(f"block id {block_id}: the journal is at {self.next_block_id} already")
        self.next_block_id = block_id + 1
        if self.paused and not self._may_try_again():
            return self._skip(block_id, again)
        record = encode(block_id, block)
        try:
            self._write(block_id, record)
        except OSError as error:
            self._pause(error)
            return self._skip(block_id, again)
        self.lacking, self._skipped_id = self.lacking - again, -1
        self._unsynced.append(block_id)
        self._go_on()
        self._seal_if_full()
        return True

    def _skip(self, block_id: int, again: bool) -> bool:
        self.lacking, self._skipped_id = self.lacking + (not again), block_id
        return False

    def flush(self) -> None:
        """Return when all that was appended is on disk, or the journal pauses."""
        self._flushed_s = self._clock()
        if self._unsynced:
            try:
                self._sync_open()
            except OSError as error:
                self._pause(error)

    def flush_if_due(self) -> None:
        """`flush` where the last one is longer ago than `flush_s`."""
        if self._clock() - self._flushed_s >= self._limits.flush_s:
            self.flush()

    @property
    def is_synced(self) -> bool:
        """Whether all that was appended is on disk."""
        return not self._unsynced and not self._unsure

    def take_back(self) -> list[int]:
        """Cut off the blocks that a failed sync leaves unsure, to be appended again in this order.

        And after them the one that was skipped last, if any. Call it before each `append`, or
        never: they may well be on disk.
        """
        unsure, self._unsure = self._unsure, []
        if unsure:
            held = self._held[-1]
            with contextlib.suppress(OSError), self._hold():
                os.truncate(held.path, held.synced_bytes)
            self.nbytes -= held.nbytes - held.synced_bytes
            held.nbytes = held.synced_bytes
            self._forget_empty()
            self.lacking -= self._skipped_id >= 0
            self.next_block_id, self._skipped_id = unsure[0], -1
        return unsure

    def discard(self, below: int) -> None:
        """Remove segments all of whose blocks have smaller ids."""
        while len(self._held) > 1 and self._held[1].first_id <= below:
            if not self._remove_oldest():
                return

    def close(self) -> None:
        """Seal what is open."""
        if self._file is not None:
            try:
                self._seal()
            except OSError as error:
                self._pause(error)

    def take_notices(self) -> list[JournalNotice]:
        """What happened since the last call; may be called from another thread."""
        return [self._notices.popleft() for _ in range(len(self._notices))]

    def _hold(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._fence is None else self._fence.hold()

    def _write(self, block_id: int, record: bytes) -> None:
        self._trim(len(record))
        self._check_room(len(record))
        if self._file is not None and block_id >= self._held[-1].first_id + SEGMENT_IDS:
            self._seal()
        with self._hold():
            if self._file is None:
                self._open(block_id)
            self._write_whole(record)
        self._last_id = block_id

    def _open(self, first_id: int) -> None:
        path = self._directory / segment_name(first_id, self._life, sealed=False)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._held.append(_Held(path, first_id, 0))
        self._new_name = True

    def _write_whole(self, record: bytes) -> None:
        """All of it or nothing."""
        assert self._file is not None
        held, rest = self._held[-1], memoryview(record)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, held.nbytes)
            raise
        held.nbytes += len(record)
        self.nbytes += len(record)

    def _seal_if_full(self) -> None:
        full = self._last_id + 1 >= self._held[-1].first_id + SEGMENT_IDS
        if full or self._held[-1].nbytes >= self._segment_bytes:
            try:
                self._seal()
            except OSError as error:
                self._pause(error)

    def _seal(self) -> None:
        assert self._file is not None
        held = self._held[-1]
        with self._hold():
            self._write_whole(end_mark(self._last_id))
        self._sync_open()
        sealed = self._directory / segment_name(held.first_id, self._life, sealed=True)
        with self._hold():
            os.rename(held.path, sealed)
        held.path = sealed
        self._let_go()
        sync_directory(self._directory)

    def _sync_open(self) -> None:
        """Return when the open segment and its name are on disk."""
        assert self._file is not None
        unsynced, self._unsynced = self._unsynced, []
        try:
            os.fsync(self._file)
            if self._new_name:
                sync_directory(self._directory)
        except OSError:
            self._unsure = unsynced
            raise
        self._held[-1].synced_bytes, self._new_name = self._held[-1].nbytes, False

    def _let_go(self) -> None:
        """Close the open segment; what is in it stays readable."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = None

    def _check_room(self, needed_bytes: int) -> None:
        free, reserve = free_bytes(self._directory), self._limits.reserve_bytes
        if free < reserve + needed_bytes:
            text = f"{free:,} bytes are free, {reserve:,} are left to others"
            raise OSError(errno.ENOSPC, text)

    def _may_try_again(self) -> bool:
        """Whether some time has passed and there is room for a whole segment."""
        now_s = self._clock()
        if now_s - self._tried_s < self._limits.retry_s:
            return False
        self._tried_s = now_s
        try:
            return free_bytes(self._directory) >= self._limits.reserve_bytes + self._segment_bytes
        except OSError:
            return False

    def _pause(self, error: OSError) -> None:
        """Leave the open segment, whose end may be torn, and skip blocks from now on."""
        if self._file is not None and self._unsynced:
            with contextlib.suppress(OSError):
                self._sync_open()
        self._let_go()
        self._forget_empty()
        self._tried_s = self._clock()
        if not self.paused:
            self.paused, self._lacking_before = True, self.lacking
            action = "training goes on; blocks are skipped until there is room"
            cause = f"{self._directory}: {error.strerror or error}"
            self._notices.append(JournalNotice("journal_paused", cause, action))

    def _forget_empty(self) -> None:
        """An empty segment's name would be in the way of the next one."""
        if self._held and self._held[-1].nbytes == 0:
            self._life = secrets.token_hex(4)  # where the disk keeps it all the same
            with contextlib.suppress(OSError), self._hold():
                self._held.pop().path.unlink(missing_ok=True)

    def _go_on(self) -> None:
        if self.paused:
            self.paused = False
            cause = f"{self._directory} can be written again"
            lacking = self.lacking - self._lacking_before
            action = f"goes on; it lacks {lacking} blocks"
            self._notices.append(JournalNotice("journal_resumed", cause, action))

    def _trim(self, needed_bytes: int) -> None:
        """Keep the disk budget."""
        while len(self._held) > 1 and self.nbytes + needed_bytes > self._limits.max_bytes:
            if not self._remove_oldest():
                return
            if not self._trimmed:
                self._trimmed = True
                cause = f"{self._directory} would take more than {self._limits.max_bytes:,} bytes"
                action = "the oldest blocks go first: a resume finds fewer than the replay holds"
                self._notices.append(
                    JournalNotice("journal_trimmed", cause, action, "raise journal_max_bytes")
                )

    def _remove_oldest(self) -> bool:
        try:
            with self._hold():
                self._held[0].path.unlink(missing_ok=True)
        except OSError:
            return False
        self.nbytes -= self._held.popleft().nbytes
        return True


def _check_schema(directory: Path, found: str | None, expected: str) -> None:
    if found is not None and found != expected:
        raise JournalSchemaError(
            f"the journal in {directory} holds {found}; this task has {expected}: resume it with "
            "the configuration it was written with, or move that directory away"
        )
