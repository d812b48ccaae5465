"""The journal's thread: blocks are written beside the work, and nothing waits for the disk.

Invariant: what waits to be written are handles of blocks that lie elsewhere, bounded in bytes; a
block that finds no room is skipped and counted, or, where each must be kept, whoever offers is told
to wait. Whatever goes wrong in the thread ends the journal and is told as a notice; it never
reaches who offers blocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rl_cluster.replay.block import Block
from rl_cluster.replay.journal import Journal, JournalNotice

WAITING_BYTES = 48 << 20
_TRY_AGAIN_S = 0.5

_log = logging.getLogger(__name__)

Fetch = Callable[[Any], Block | None]
"""The block of a handle, best without a copy; None where it is gone."""


@dataclass(frozen=True)
class JournalStatus:
    """Where a journal stands."""

    state: Literal["off", "writing", "paused"]
    blocks: int
    """Block ids between the oldest on disk and the newest."""
    nbytes: int
    lacking: int
    """Blocks that were skipped since the start."""


OFF = JournalStatus("off", 0, 0, 0)


@dataclass(frozen=True)
class _Waiting:
    block_id: int
    handle: Any
    nbytes: int


class JournalWriter:
    """Writes what it is offered.

    Args:
      journal: used by the thread alone from now on.
      fetch: called in the thread.
      waiting_bytes: of blocks that wait.
      keeps_all: no block is skipped: what the disk refuses is tried again until it takes it, and
        what finds no room is taken all the same; offer only while `has_room`.
    """

    def __init__(
        self,
        journal: Journal,
        fetch: Fetch,
        waiting_bytes: int = WAITING_BYTES,
        keeps_all: bool = False,
    ) -> None:
        self._journal, self._fetch, self._limit = journal, fetch, waiting_bytes
        self._keeps_all = keeps_all
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting | threading.Event] = deque()
        self._written: list[_Waiting] = []
        """Where all are kept: what was appended, and is not known to be on disk yet."""
        self._waiting_bytes, self._below = 0, 0
        self._skipped, self._behind = 0, False
        self._gone, self._closed, self._failed = 0, False, False
        self._notices: deque[JournalNotice] = deque()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def offer(self, block_id: int, handle: Any, nbytes: int) -> None:
        """Write a block soon; ids only grow."""
        with self._changed:
            full = self._waiting_bytes + nbytes > self._limit and not self._keeps_all
            if self._failed or full:
                self._skip()
                return
            self._waiting.append(_Waiting(block_id, handle, nbytes))
            self._waiting_bytes += nbytes
            self._changed.notify()

    @property
    def has_room(self) -> bool:
        """Less than half of what may wait does; while the journal pauses, nothing does."""
        if self._journal.paused:  # it looks for room when it is given a block: let one come
            return self._waiting_bytes == 0
        return self._waiting_bytes < self._limit // 2

    def discard(self, below: int) -> None:
        """Blocks with smaller ids are not needed any more."""
        self._below = below

    def flush(self, timeout_s: float) -> bool:
        """Whether all that was offered so far is on disk, but for what was skipped."""
        done = threading.Event()
        with self._changed:
            if self._failed:
                return False
            self._waiting.append(done)
            self._changed.notify()
        return done.wait(timeout_s) and not self._failed and not self._journal.paused

    def close(self, timeout_s: float) -> None:
        """Write what waits, seal, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def status(self) -> JournalStatus:
        """Where it stands."""
        journal = self._journal
        lacking = journal.lacking + self._skipped + self._gone
        if self._failed:
            return JournalStatus("off", journal.blocks, journal.nbytes, lacking)
        state: Literal["paused", "writing"] = (
            "paused" if journal.paused or self._behind else "writing"
        )
        return JournalStatus(state, journal.blocks, journal.nbytes, lacking)

    def take_notices(self) -> list[JournalNotice]:
        """What happened since the last call."""
        own = [self._notices.popleft() for _ in range(len(self._notices))]
        return self._journal.take_notices() + own

    def _skip(self) -> None:
        self._skipped += 1
        if not self._behind and not self._failed:
            self._behind = True
            cause = f"the disk is slower than collection: {self._waiting_bytes:,} bytes wait"
            action = "training goes on; blocks are skipped until half of that is written"
            self._notices.append(JournalNotice("journal_paused", cause, action))

    def _caught_up(self) -> None:
        if self._behind and self._waiting_bytes <= self._limit // 2:
            self._behind = False
            action = f"goes on; it lacks {self._skipped} blocks since the start"
            self._notices.append(JournalNotice("journal_resumed", "the disk caught up", action))

    def _run(self) -> None:
        try:
            self._write_for_ever()
        except Exception as error:  # noqa: BLE001 - thread boundary
            _log.exception("the journal ends")
            cause = f"{type(error).__name__}: {error}"
            action = "training goes on without it: a resume finds the replay as it is on disk now"
            self._notices.append(JournalNotice("journal_stopped", cause, action))
            self._fail()

    def _fail(self) -> None:
        with self._changed:
            self._failed = True
            for item in self._waiting:
                if isinstance(item, threading.Event):
                    item.set()
                else:
                    self._skipped += 1
            self._waiting.clear()

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(0.5)
                item = self._waiting.popleft() if self._waiting else None
                if item is None and self._closed:
                    break
            if isinstance(item, threading.Event):
                self._flush()
                item.set()
            elif item is not None:
                self._write(item)
            self._journal.flush_if_due()
            self._settle()
            self._journal.discard(self._below)
            del item  # or an evicted block stays where it lies until the next one comes
        self._journal.close()

    def _flush(self) -> None:
        while True:
            self._journal.flush()
            self._settle()
            if not self._keeps_all or self._journal.is_synced or self._closed:
                return

    def _settle(self) -> None:
        """Where all are kept, write again what a failed sync leaves unsure."""
        if self._keeps_all:
            self._write_all([])
            if self._journal.is_synced:
                self._written.clear()

    def _write(self, item: _Waiting) -> None:
        if self._keeps_all:
            self._write_all([item])
        elif (block := self._block_of(item)) is not None:
            self._journal.append(item.block_id, block)
        with self._changed:
            self._waiting_bytes -= item.nbytes
            self._caught_up()

    def _write_all(self, items: list[_Waiting]) -> None:
        """Append until the disk has taken all, after those that it turns out not to have."""
        todo = deque(items)
        while not self._closed or todo:
            if unsure := set(self._journal.take_back()):
                todo.extendleft([w for w in reversed(self._written) if w.block_id in unsure])
                self._written = [w for w in self._written if w.block_id not in unsure]
            if not todo:
                return
            block = self._block_of(todo[0])
            if block is None or self._journal.append(todo[0].block_id, block):
                self._written.append(todo.popleft())
            elif self._closed:
                return
            else:
                time.sleep(_TRY_AGAIN_S)

    def _block_of(self, item: _Waiting) -> Block | None:
        block = self._fetch(item.handle)
        self._gone += block is None
        return block
