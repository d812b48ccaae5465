"""Shell of the replay: calls rollouts for blocks, keeps the index, answers the learner.

Invariants: blocks are return values of calls made here, so this actor owns them and no rollout's
death takes one; a block's reference is dropped the moment the index evicts it; and the rate limiter
is asked before every call for blocks and before every sample, so neither side outruns the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import numpy as np
from ray.exceptions import RayError

from rl_cluster.cluster.actors import Actor, Ref, cause_of
from rl_cluster.cluster.messages import (
    BlockRef,
    ReplayStatus,
    SampleReply,
    SampleRequest,
    percentiles,
)
from rl_cluster.config import TaskConfig
from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.rate_limiter import RateLimiter
from rl_cluster.rollout import CollectReport

RETURNS_KEPT = 20
_RECENT = 4_096  # rows behind the percentiles
PREFETCHED_BATCHES = 8
_LONG_POLL_S = 1.0


class ReplayActor:
    """Index, rate limiter and collection of one task."""

    def __init__(self, task: str, config: TaskConfig, seed: int) -> None:
        self._task, self._config = task, config
        replay, rollout = config.replay, config.rollout
        rng = np.random.default_rng(seed)
        self._index = ReplayIndex(
            replay.capacity_transitions, rollout.block_length, replay.priority_exponent, rng
        )
        self._chunk = rollout.blocks_per_collect * rollout.block_length
        slack = (rollout.actors + 1) * self._chunk * replay.samples_per_insert
        slack += PREFETCHED_BATCHES * config.learner.batch
        self._limiter = RateLimiter(replay.samples_per_insert, replay.min_transitions, slack)
        self._refs: dict[int, BlockRef] = {}
        self._next_block_id = 0
        self._in_flight = 0
        self._room_changed, self._attached = asyncio.Event(), asyncio.Event()
        self._inserted, self._sampling = asyncio.Event(), asyncio.Lock()
        self._collectors: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[int, str]] = {}
        self._env_steps_before, self._episodes = 0, 0
        self._returns: deque[float] = deque(maxlen=RETURNS_KEPT)
        self._lengths: deque[int] = deque(maxlen=RETURNS_KEPT)
        self._lags: deque[int] = deque(maxlen=_RECENT)
        self._ages: deque[int] = deque(maxlen=_RECENT)
        self._version, self._updates = 0, 0
        self._epsilon: float | None = None
        self._held_back_s, self._status_s = 0.0, time.monotonic()

    async def attach(self, state: dict[str, Any] | None) -> None:
        """Take the learner's checkpointed replay state and let collection begin.

        A replay that is already at work keeps its own, newer state.
        """
        if not self._attached.is_set() and state is not None:
            self._index.restore(state["index"])
            self._env_steps_before = int(state["env_steps"])
            self._episodes = int(state["episodes"])
            self._returns.extend(state["returns"])
            self._lengths.extend(state["lengths"])
        self._attached.set()

    async def state(self) -> dict[str, Any]:
        """JSON state for a checkpoint: counters, random draws, last returns."""
        return {
            "index": self._index.state(),
            "env_steps": self._env_steps,
            "episodes": self._episodes,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    async def add_rollout(self, name: str, life: int, rollout: Actor) -> None:
        """Collect from a rollout from now on; an earlier life of the same name is forgotten."""
        self._failed.pop(name, None)
        if name in self._collectors:
            self._collectors[name].cancel()
        self._collectors[name] = asyncio.create_task(self._collect_from(name, life, rollout))

    async def sample(self, request: SampleRequest) -> SampleReply:
        """Apply priorities, then draw what the ratio allows; it may take a while to allow any."""
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
            epsilon_mean=self._epsilon,
            returns=tuple(self._returns),
            episode_length_mean=float(lengths.mean()) if len(lengths) else None,
            episodes=self._episodes,
            rollout_wait_share=min(1.0, held_back_s / elapsed_s / self._config.rollout.actors),
            failed_rollouts=dict(self._failed),
        )

    @property
    def _env_steps(self) -> int:
        return self._env_steps_before + self._index.inserted_transitions

    @property
    def _importance_exponent(self) -> float:
        """β rises linearly to 1 (Schaul et al. 2016, section 3.4)."""
        replay = self._config.replay
        progress = min(1.0, self._updates / replay.importance_updates)
        return replay.importance_exponent + (1 - replay.importance_exponent) * progress

    async def _collect_from(self, name: str, life: int, rollout: Actor) -> None:
        """Call one rollout for blocks, for ever or until it fails."""
        await self._attached.wait()
        blocks = self._config.rollout.blocks_per_collect
        while True:
            await self._room()
            self._in_flight += self._chunk
            try:
                call: Any = rollout.collect.options(num_returns=blocks + 1)
                refs: list[Ref] = call.remote(blocks, self._env_steps)
                infos, report = await refs[0]
                self._take(infos, refs[1:], report)
            except (RayError, ValueError) as error:  # ValueError: blocks that do not belong here
                self._failed[name] = life, cause_of(error)
                return
            finally:
                self._in_flight -= self._chunk
                self._room_changed.set()

    async def _room(self) -> None:
        """Wait until the ratio allows another call for blocks."""
        start_s = time.monotonic()
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
            samples.append(self._index.sample(batch, self._importance_exponent))
            self._limiter.sample(batch)
            self._ages.extend(self._index.ages(samples[-1]).tolist())
        if samples:
            self._room_changed.set()
        oldest = self._next_block_id - len(self._refs)
        first_unknown = max(oldest, request.known_block_id + 1)
        new = tuple((i, self._refs[i]) for i in range(first_unknown, self._next_block_id))
        return SampleReply(tuple(samples), new, oldest, self._env_steps)

    def _take(self, infos: list[BlockInfo], refs: list[Ref], report: CollectReport) -> None:
        for info, ref in zip(infos, refs, strict=True):
            evicted = self._index.insert(self._next_block_id, info)
            self._refs[self._next_block_id] = ref
            self._next_block_id += 1
            if evicted is not None:
                del self._refs[evicted]
            self._limiter.insert(info.transitions)
            # Versions below 0 acted before anything was published: that is no lag.
            acted = info.policy_versions[info.policy_versions >= 0]
            self._lags.extend(np.maximum(self._version - acted, 0).tolist())
        self._inserted.set()
        self._returns.extend(game.true_return for game in report.games)
        self._lengths.extend(game.env_steps for game in report.games)
        self._episodes += len(report.games)
        self._epsilon = report.epsilon_mean
