"""Shell of the replay: calls rollouts for blocks, keeps the index, answers the learner.

Invariants: blocks are return values of calls made here, so this actor owns them and no rollout's
death takes one; a block's reference is dropped the moment the index evicts it; the rate limiter is
asked before every call for blocks and before every sample, so neither side outruns the other; and
blocks come back from the journal beside the work: they are no inserts, and push nothing out.
Experience from outside comes through a reader in a rollout's place: it is not held back, is taken
once, and is acknowledged when the journal has it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque

import numpy as np
from ray.exceptions import RayError

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, Ref, cause_of
from rl_cluster.cluster.arrivals import Arrivals
from rl_cluster.cluster.messages import (
    ReplayState,
    ReplayStatus,
    SampleReply,
    SampleRequest,
    notice,
    percentiles,
)
from rl_cluster.cluster.parcels import Delivery, Network, call_for_blocks
from rl_cluster.cluster.placement import node_id
from rl_cluster.cluster.receipts import Receipts
from rl_cluster.cluster.replay_journal import BlockBack, ReplayJournal
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.replay.journal_writer import OFF
from rl_cluster.replay.rate_limiter import RateLimiter
from rl_cluster.supervision.health import Health

RETURNS_KEPT = 20
_RUNGS = 16  # reports, of all rungs of the ladder of exploration
_RECENT = 4_096  # rows behind the percentiles
PREFETCHED_BATCHES = 8
_LONG_POLL_S = 1.0
_DISK_WAIT_S = 0.05
_MESSAGES_KNOWN = 100_000  # above all that can come again because an acknowledgement was lost


class ReplayActor:
    """Index, rate limiter and collection of one task.

    Args:
      task: its name.
      config: of the task.
      seed: of the draws.
      journal: where blocks are kept; None, or where the task has its journal off: nowhere.
      epoch: which life of this replay it is.

    Raises:
      JournalSchemaError: the journal there is of another schema.
    """

    def __init__(
        self,
        task: str,
        config: TaskConfig,
        seed: int,
        journal: JournalPlace | None = None,
        epoch: int = 0,
    ) -> None:
        self._vitals = Vitals(epoch, "waiting")
        self._task, self._config = task, config
        replay, rollout = config.replay, config.rollout
        rng = np.random.default_rng(seed)
        self._index = ReplayIndex(
            replay.capacity_transitions, rollout.block_length, replay.priority_exponent, rng
        )
        self._chunk = rollout.blocks_per_collect * rollout.block_length
        self._limiter = self._new_limiter()
        self._blocks = Arrivals()
        self._journal = ReplayJournal(journal, config) if journal and replay.journal else None
        self._next_block_id = self._journal.next_block_id if self._journal else 0
        self._restoring: asyncio.Task[None] | None = None
        self._saved_priorities: dict[int, np.ndarray] = {}
        """Of blocks that have not come back yet."""
        self._restored_blocks, self._doubles, self._env_steps_before, self._episodes = 0, 0, 0, 0
        self._notices: list[dict[str, str]] = []
        self._receipts = Receipts(self.flush)
        self._known_messages: OrderedDict[str, None] = OrderedDict()
        """Of the blocks that came last, those that left again included."""
        self._network = Network()
        self._room_changed, self._attached = asyncio.Event(), asyncio.Event()
        self._inserted, self._sampling = asyncio.Event(), asyncio.Lock()
        self._collectors: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[int, str]] = {}
        self._returns = deque[float](maxlen=RETURNS_KEPT)  # finite ones: JSON knows no other
        self._lengths, self._epsilons = deque[int](maxlen=RETURNS_KEPT), deque[float](maxlen=_RUNGS)
        self._lags, self._ages = deque[int](maxlen=_RECENT), deque[int](maxlen=_RECENT)
        self._version, self._updates, self._in_flight = 0, 0, 0
        self._held_back_s, self._status_s = 0.0, time.monotonic()

    def _new_limiter(self) -> RateLimiter:
        replay, slack = self._config.replay, self._slack(self._config)
        outside = self._config.is_fleet
        return RateLimiter(
            replay.samples_per_insert, replay.min_transitions, slack, holds_inserts=not outside
        )

    @once_made
    def __repr__(self) -> str:
        """Name, state, newest policy that it heard of, and how fast it grows."""
        speed = f"{self._vitals.per_s(self._index.inserted_transitions):.0f} transitions/s"
        return self._vitals.line(names.replay_name(self._task), f"policy {self._version}", speed)

    async def attach(self, state: ReplayState | None) -> None:
        """Take the learner's checkpointed replay state and let collection and restoring begin.

        A replay that is already at work keeps its own, newer state.
        """
        if self._attached.is_set():
            return
        if state is not None:
            self._continue(state)
        self._attached.set()
        if self._journal is not None:
            self._restoring = asyncio.create_task(self._restore(self._journal))

    async def state(self) -> ReplayState:
        """What a checkpoint keeps; priorities only where a journal keeps the blocks."""
        counters = {
            "index": self._index.state(),
            "env_steps": self._env_steps,
            "episodes": self._episodes,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "next_block_id": self._next_block_id,
        }
        if self._journal is None:
            return ReplayState(counters, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
        ids, values = self._index.priorities()
        waiting = [i for i in self._saved_priorities if i >= self._oldest_block_id]
        if waiting:
            rows = np.zeros((len(waiting), values.shape[1]), np.float32)
            for row, block_id in zip(rows, waiting, strict=True):
                saved = self._saved_priorities[block_id][: len(row)]
                row[: len(saved)] = saved
            ids, values = np.concatenate([waiting, ids]), np.concatenate([rows, values])
        return ReplayState(counters, ids, values)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until every block accepted so far is in the journal; whether all are."""
        if self._journal is None:
            return True
        return await asyncio.to_thread(self._journal.flush, timeout_s)

    async def totals(self) -> tuple[int, int, bool]:
        """Transitions kept, steps taken in, and whether warm-up is over."""
        return self._index.transitions, self._env_steps, self._limiter.warm

    async def newest_blocks(self, most: int) -> list[Ref]:
        """References to the blocks that came last, to look at."""
        return self._blocks.newest(most)

    async def health(self) -> Health:
        """Say how the work goes on."""
        return self._vitals.report()

    async def change(self, config: TaskConfig) -> None:
        """Take another ratio or batch from the next sample on."""
        self._config = config
        self._limiter.change(config.replay.samples_per_insert, self._slack(config), self._in_flight)
        self._room_changed.set()
        self._inserted.set()

    def _slack(self, config: TaskConfig) -> float:
        """One portion of blocks a rollout, and the batches drawn ahead."""
        portions = (config.rollout.actors + 1) * self._chunk
        ahead = PREFETCHED_BATCHES * config.learner.batch
        return portions * config.replay.samples_per_insert + ahead

    async def add_rollout(self, name: str, life: int, rollout: Actor) -> None:
        """Collect from a rollout from now on; an earlier life of the same name is forgotten."""
        self._failed.pop(name, None)
        if name in self._collectors:
            self._collectors[name].cancel()
        self._collectors[name] = asyncio.create_task(self._collect_from(name, life, rollout))

    async def sample(self, request: SampleRequest) -> SampleReply:
        """Apply priorities, then draw what the ratio allows; it may take a while to allow any."""
        self._vitals.progress()
        self._version, self._updates = request.policy_version, request.learner_updates
        for sample, td_errors in request.td_errors:
            self._index.update_priorities(sample, td_errors)
        async with self._sampling:  # calls are answered in their order, which the learner counts on
            await self._samples_owed()
            return self._reply(request)

    async def status(self) -> ReplayStatus:
        """Figures since the last call, and totals."""
        now_s = time.monotonic()
        elapsed_s, self._status_s = now_s - self._status_s, now_s
        held_back_s, self._held_back_s = self._held_back_s, 0.0
        lengths = np.array(self._lengths)
        journal = self._journal.status() if self._journal else OFF
        restoring = self._restoring is not None and not self._restoring.done()
        return ReplayStatus(
            attached=self._attached.is_set(),
            env_steps=self._env_steps,
            transitions=self._index.transitions,
            nbytes=self._index.nbytes,
            fill=self._index.fill,
            warm=self._limiter.warm,
            samples_per_insert=self._limiter.actual,
            policy_lag=percentiles(np.array(self._lags)),
            replay_age=percentiles(np.array(self._ages)),
            importance_exponent=self._importance_exponent,
            epsilon_mean=float(np.mean(self._epsilons)) if self._epsilons else None,
            returns=tuple(self._returns),
            episode_length_mean=float(lengths.mean()) if len(lengths) else None,
            episodes=self._episodes,
            rollout_wait_share=min(1.0, held_back_s / elapsed_s / self._config.rollout.actors),
            failed_rollouts=dict(self._failed),
            journal_state="restoring" if restoring else journal.state,
            journal_blocks=journal.blocks,
            journal_bytes=journal.nbytes,
            restored_blocks=self._restored_blocks,
            lacking_blocks=journal.lacking,
            doubles=self._doubles,
            network=self._network,
            notices=tuple(self._take_notices()),
        )

    @property
    def _env_steps(self) -> int:
        return self._env_steps_before + self._index.inserted_transitions

    @property
    def _oldest_block_id(self) -> int:
        """Blocks below it have left, or will never come."""
        return max(0, self._next_block_id - self._index.places)

    @property
    def _importance_exponent(self) -> float:
        """β rises linearly to 1 (Schaul et al. 2016, section 3.4)."""
        replay = self._config.replay
        progress = min(1.0, self._updates / replay.importance_updates)
        return replay.importance_exponent + (1 - replay.importance_exponent) * progress

    async def _collect_from(self, name: str, life: int, rollout: Actor) -> None:
        """Call one rollout for blocks, for ever or until it fails."""
        await self._attached.wait()
        blocks, here = self._config.rollout.blocks_per_collect, node_id()
        while True:
            await self._room()
            self._in_flight += self._chunk
            try:
                brought = await call_for_blocks(rollout, blocks, self._env_steps, here)
                self._take(brought)
                self._receipts.owe(rollout, [i.message for i in brought.infos if i.message])
            except Exception as error:  # noqa: BLE001 - task boundary: the supervisor hears of it
                self._failed[name] = life, cause_of(error)
                return
            finally:
                self._in_flight -= self._chunk
                self._room_changed.set()

    async def _room(self) -> None:
        """Wait until the ratio allows another call for blocks."""
        start_s = time.monotonic()
        while self._journal is not None and self._config.is_fleet and not self._journal.has_room:
            await asyncio.sleep(_DISK_WAIT_S)
        while not self._limiter.may_insert(self._in_flight + self._chunk):
            self._room_changed.clear()
            await self._room_changed.wait()
        self._held_back_s += time.monotonic() - start_s

    async def _samples_owed(self) -> None:
        """Wait until the ratio allows a batch, but no longer than a learner may be left waiting."""
        deadline_s = time.monotonic() + _LONG_POLL_S
        while not self._limiter.may_sample(self._config.learner.batch):
            self._inserted.clear()
            try:
                await asyncio.wait_for(self._inserted.wait(), deadline_s - time.monotonic())
            except TimeoutError:
                return

    def _reply(self, request: SampleRequest) -> SampleReply:
        batch = self._config.learner.batch
        samples: list[Sample] = []
        while len(samples) < request.batches and self._limiter.may_sample(batch):
            samples.append(self._index.sample(self._config.draws, self._importance_exponent))
            self._limiter.sample(batch)
            self._ages.extend(self._index.ages(samples[-1]).tolist())
        if samples:
            self._room_changed.set()
        return SampleReply(
            tuple(samples),
            self._blocks.after(request.known_arrival),
            self._oldest_block_id,
            self._env_steps,
        )

    def _take(self, brought: Delivery) -> None:
        report = brought.report
        self._network.add(brought)
        for cause in brought.refused:
            self._notices.append(notice("block_refused", cause, "left out; training goes on"))
        for info, ref in zip(brought.infos, brought.refs, strict=False):  # a reader may bring fewer
            if self._holds(info.message):
                self._doubles += 1
            else:
                self._insert(info, ref)
        self._vitals.progress()
        self._inserted.set()
        self._returns.extend(g.true_return for g in report.games if math.isfinite(g.true_return))
        self._lengths.extend(game.env_steps for game in report.games)
        self._episodes += len(report.games)
        if report.epsilon_mean is not None:
            self._epsilons.append(report.epsilon_mean)

    def _holds(self, message: str) -> bool:
        """Whether a block came before; it may lie in the journal only, or have left already."""
        if self._index.holds(message) or message in self._known_messages:
            return True
        return self._journal is not None and message in self._journal.messages

    def _insert(self, info: BlockInfo, ref: Ref) -> None:
        block_id = self._next_block_id
        evicted = self._index.insert(block_id, info)
        self._next_block_id += 1
        self._blocks.keep(block_id, ref)
        if evicted is not None:
            self._blocks.let_go(evicted)
        if info.message:
            self._known_messages[info.message] = None
            if len(self._known_messages) > _MESSAGES_KNOWN:
                self._known_messages.popitem(last=False)
        self._limiter.insert(info.transitions)
        # Versions below 0 acted before anything was published: that is no lag.
        acted = info.policy_versions[info.policy_versions >= 0]
        self._lags.extend(np.maximum(self._version - acted, 0).tolist())
        if self._journal is not None:
            self._journal.offer(block_id, ref, info.nbytes)
            self._journal.discard(self._oldest_block_id)

    def _continue(self, state: ReplayState) -> None:
        counters = state.counters
        self._index.restore(counters["index"])
        self._env_steps_before = int(counters["env_steps"])
        self._episodes = int(counters["episodes"])
        self._returns.extend(counters["returns"])
        self._lengths.extend(counters["lengths"])
        # Blocks that a crash took from the journal may still be named by saved priorities.
        self._next_block_id = max(self._next_block_id, int(counters.get("next_block_id", 0)))
        self._saved_priorities = dict(zip(state.block_ids.tolist(), state.priorities, strict=True))

    async def _restore(self, journal: ReplayJournal) -> None:
        """Bring blocks back, the newest first, until the index is full or there are no more."""
        start_s, stopped = time.monotonic(), ""
        try:
            while True:
                back = await asyncio.to_thread(journal.bring_back, self._oldest_block_id)
                if back is None or not self._take_back(back):
                    break
        except (RayError, ValueError) as error:
            stopped = f"; the rest stays on disk: {cause_of(error)}"
        self._saved_priorities.clear()
        if self._restored_blocks or journal.refused or stopped:
            found = self._restored_blocks + journal.refused
            cause = f"{self._restored_blocks} of {found} blocks in the journal{stopped}"
            action = f"in replay again after {time.monotonic() - start_s:.1f} s"
            self._notices += [*journal.damage(), notice("restored", cause, action)]

    def _take_back(self, back: BlockBack) -> bool:
        """Whether there was a place for it."""
        block_id, info = back.block_id, back.info
        saved = self._saved_priorities.pop(block_id, None)
        priorities = None if saved is None else saved[: len(info.starts)]
        if self._index.holds(info.message):  # it came again, before a larger replay took this one
            return True
        too_old = block_id < self._oldest_block_id  # newer ones came while it was read
        if too_old or not self._index.prepend(block_id, info, priorities):
            return False
        self._blocks.keep(block_id, back.ref)
        self._restored_blocks += 1
        if not self._limiter.warm:  # what came back is warm-up done, and no insert beyond it
            missing = self._limiter.min_transitions - self._limiter.inserts
            self._limiter.insert(min(missing, info.transitions))
        self._inserted.set()
        self._room_changed.set()
        return True

    def _take_notices(self) -> list[dict[str, str]]:
        notices, self._notices = self._notices, []
        return notices + (self._journal.take_notices() if self._journal else [])
