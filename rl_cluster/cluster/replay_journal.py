"""The journal beside the replay actor: it reads blocks out of the object store, and puts them back.

Invariant: nothing here runs on the actor's event loop but what returns at once; a block is read
without a copy, and one that comes back is owned by the actor that calls for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import ray
from ray.exceptions import GetTimeoutError, RayError

from rl_cluster.cluster.actors import Ref, read
from rl_cluster.cluster.messages import notice
from rl_cluster.config import TaskConfig
from rl_cluster.replay.block import Block, BlockInfo
from rl_cluster.replay.journal import Journal, JournalLimits, JournalPlace
from rl_cluster.replay.journal_segments import RefusedRecord
from rl_cluster.replay.journal_writer import JournalStatus, JournalWriter

_READ_TIMEOUT_S = 10.0
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class BlockBack:
    """A block that is in the object store again."""

    block_id: int
    info: BlockInfo
    ref: Ref


class ReplayJournal:
    """Writes blocks by reference, and restores them.

    Args:
      place: where, and of what schema.
      config: of the task.

    Raises:
      JournalSchemaError: the journal there holds another schema.
    """

    def __init__(self, place: JournalPlace, config: TaskConfig) -> None:
        limits = JournalLimits(config.replay.journal_max_bytes, config.replay.disk_reserve_bytes)
        journal = Journal(place, limits)
        self.next_block_id = journal.next_block_id
        self._schema, self._config = place.schema, config
        self._found = journal.found()
        self.messages = frozenset(journal.messages()) if config.is_fleet else frozenset()
        """What the blocks of earlier sessions were cut from."""
        self._refused: list[str] = []
        fetch = _block_at_last if config.is_fleet else _block_of
        self._writer = JournalWriter(journal, fetch, keeps_all=config.is_fleet)

    def offer(self, block_id: int, ref: Ref, nbytes: int) -> None:
        """Write a block soon."""
        self._writer.offer(block_id, ref, nbytes)

    @property
    def has_room(self) -> bool:
        """Another block would not wait long."""
        return self._writer.has_room

    def discard(self, below: int) -> None:
        """Blocks with smaller ids are not needed any more."""
        self._writer.discard(below)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was offered is on disk; whether it is."""
        return self._writer.flush(timeout_s)

    def status(self) -> JournalStatus:
        """Where the writer stands."""
        return self._writer.status()

    def bring_back(self, from_id: int) -> BlockBack | None:
        """Put the next older block into the object store; None: there is no more from `from_id` on.

        Raises:
          RayError: the object store does not take it.
        """
        for found in self._found:
            if isinstance(found, RefusedRecord):
                self._refused.append(found.reason)
            elif found.block_id < from_id:
                return None
            elif reason := self._does_not_fit(found.block):
                self._refused.append(f"block {found.block_id} {reason}")
            else:
                info = found.block.info()
                # A copy, or the index would keep the whole block in this actor's memory, too.
                info = replace(info, policy_versions=info.policy_versions.copy())
                return BlockBack(found.block_id, info, ray.put(found.block))
        return None

    @property
    def refused(self) -> int:
        """Records that could not be used."""
        return len(self._refused)

    def take_notices(self) -> list[dict[str, str]]:
        """What the writer has to tell since the last call."""
        return [
            notice(each.kind, each.cause, each.action, each.detail)
            for each in self._writer.take_notices()
        ]

    def damage(self) -> list[dict[str, str]]:
        """One notice of all that was refused."""
        if not self._refused:
            return []
        shown = "; ".join(self._refused[:_REASONS_SHOWN])
        more = len(self._refused) - _REASONS_SHOWN
        cause = shown + (f"; and {more} more" if more > 0 else "")
        action = f"left out {len(self._refused)} records; whole ones beside them are used"
        return [notice("journal_damaged", cause, action)]

    def _does_not_fit(self, block: Block) -> str | None:
        config, length = self._config, self._config.rollout.block_length
        tail = len(block.observations) - block.context - block.core
        if block.schema != self._schema:
            return f"holds {block.schema}; this task has {self._schema}"
        if block.core > length:
            return f"has {block.core} core rows; this replay takes {length}"
        if block.context < config.block_context or tail < config.block_tail:
            return (
                f"has {block.context} rows before its core and {tail} behind it: too few, "
                f"{config.block_context} and {config.block_tail} are needed"
            )
        return None


def _block_of(ref: Ref) -> Block | None:
    """The block in shared memory; None where it was lost with its node."""
    try:
        block: Block = read(ref, _READ_TIMEOUT_S)
    except RayError:
        return None
    return block


def _block_at_last(ref: Ref) -> Block | None:
    """The same, however long the object store does not answer: what is passed over would be
    acknowledged, and lost with the store."""
    while True:
        try:
            block: Block = read(ref, _READ_TIMEOUT_S)
        except GetTimeoutError:
            continue
        except RayError:
            return None
        return block
