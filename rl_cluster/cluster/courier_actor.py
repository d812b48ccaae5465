"""Shell of the courier: takes policies to the rovers, and tells them what the training side does.

Invariant: a version is on the shelf before it is sent, so whatever dies in between is made up for:
a courier begins by sending the newest version that rovers were not told of. Acting and training
never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, cause_of, read
from rl_cluster.cluster.evaluations import EvaluationError, Evaluations
from rl_cluster.cluster.messages import Candidate, EvaluatorStatus, RunClock
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.courier import (
    KEPT_POLICIES,
    Judge,
    Packed,
    go_back,
    load_policy,
    pack,
    shelve,
    verdict,
)
from rl_cluster.evaluation import Evaluation
from rl_cluster.fence import Fence
from rl_cluster.field_report import read_scores
from rl_cluster.fleet_settings import stream_settings, stream_url
from rl_cluster.policy_export import PolicyError
from rl_cluster.policy_shelf import PolicyShelf, PolicyShelfError
from rl_cluster.replay.block import Block
from rl_cluster.streams.codec import ServerStatus
from rl_cluster.streams.models import ModelPublisher, VersionTaken
from rl_cluster.streams.source import StreamError, StreamUnreachable
from rl_cluster.supervision.gate import go_back_to
from rl_cluster.supervision.health import Health

_NICENESS = 10
_READ_TIMEOUT_S = 10.0
_ROLLBACK_TIMEOUT_S = 60.0
_LOOK_S = 0.5
_STATUS_S = 1.0
_AGAIN_S = 2.0
_CHECKED_ROWS = 16


@dataclass(frozen=True)
class CourierStatus(EvaluatorStatus):
    """What the courier reports."""

    sent_version: int | None = None
    """Newest version that rovers were told of; None: none yet."""
    held_back: int = 0
    """Policies that the gate kept since the start."""


class CourierActor:
    """Courier of one task."""

    def __init__(
        self,
        task: str,
        config: TaskConfig,
        run_dir: str,
        replay: str,
        wall_s: float,
        fence: Fence,
    ) -> None:
        os.nice(_NICENESS)
        torch.set_num_threads(1)
        self._task, self._config, self._run_dir = task, config, Path(run_dir)
        self._replay_name, self._clock = replay, RunClock(wall_s)
        directory = self._run_dir / task
        self._vitals = Vitals(fence.epoch, "working")
        self._evaluations = Evaluations(task, directory, fence, self._vitals)
        self._shelf = PolicyShelf(directory / "policies", KEPT_POLICIES, fence)
        self._judge = Judge(config, self._vitals.progress)
        self._rollbacks: queue.Queue[tuple[int | None, Future[int]]] = queue.Queue()
        self._sent: int | None = None
        self._held_back, self._considered_step = 0, -1
        self._vitals.keep(lambda: asyncio.run(self._run()), "courier")

    @once_made
    def __repr__(self) -> str:
        """Name, state and the newest policy that rovers were told of."""
        sent = "nothing sent" if self._sent is None else f"policy {self._sent} sent"
        return self._vitals.line(names.courier_name(self._task), sent)

    def health(self) -> Health:
        """Say how the work goes on; answered beside it."""
        return self._vitals.report()

    def change(self, config: TaskConfig) -> None:
        """Take other periods and margins from the next policy on."""
        self._config = config

    def status(self) -> CourierStatus:
        """The newest evaluation, the best, and what was sent."""
        evaluations = self._evaluations
        return CourierStatus(
            evaluations.newest,
            evaluations.best,
            evaluations.take_notices(),
            self._sent,
            self._held_back,
        )

    def rollback(self, to: int | None) -> int:
        """Send an earlier policy as a new version; None: the one before the newest.

        Returns:
          The new version, once rovers were told of it.

        Raises:
          PolicyShelfError: there is no such policy.
        """
        answer: Future[int] = Future()
        self._rollbacks.put((to, answer))
        return answer.result(timeout=_ROLLBACK_TIMEOUT_S)

    async def _run(self) -> None:
        publisher = await self._connected()
        telling = asyncio.create_task(self._tell_status(publisher))
        due_s = 0.0
        try:
            await self._insist(lambda: self._send_newest(publisher))
            while True:
                self._vitals.progress()
                await self._insist(lambda: self._roll_back(publisher))
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + self._config.stream.policy_period_s
                    await self._insist(lambda: self._deliver(publisher))
                    await self._insist(lambda: self._look_at_field(publisher))
                await asyncio.sleep(_LOOK_S)
                if telling.done():
                    telling.result()
        finally:
            telling.cancel()

    async def _connected(self) -> ModelPublisher:
        """Connect, once there is a server."""
        while True:
            self._vitals.progress()
            url = stream_url(self._run_dir, self._task, self._config)
            if url is not None:
                publisher = ModelPublisher(stream_settings(self._config.stream, url))
                with contextlib.suppress(StreamUnreachable):
                    await publisher.open()
                    return publisher
            await asyncio.sleep(_LOOK_S)

    async def _insist(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that needs the server, again until it is there."""
        while True:
            try:
                return await work()
            except StreamUnreachable as error:
                self._evaluations.say("policies_wait", str(error), "tried again")
                with self._vitals.phase("waiting"):
                    await asyncio.sleep(_AGAIN_S)

    async def _tell_status(self, publisher: ModelPublisher) -> None:
        while True:
            # ValueError: replay is being replaced.
            with contextlib.suppress(RayError, StreamUnreachable, ValueError):
                transitions, env_steps, warm = await self._replay.totals.remote()
                said = "training" if warm else "ready"
                status = ServerStatus(said, self._sent or 0, transitions, env_steps)
                await publisher.publish_status(status)
            await asyncio.sleep(_STATUS_S)

    async def _send_newest(self, publisher: ModelPublisher) -> None:
        """Send what is on the shelf and rovers were not told of."""
        newest = self._shelf.newest()
        if newest is None:
            return
        latest = await publisher.latest_version()
        if latest <= newest.version:
            with contextlib.suppress(VersionTaken):
                await publisher.publish(self._shelf.load(newest.version), newest.version)
        self._sent = max(latest, newest.version)

    @property
    def _replay(self) -> Actor:
        """The task's replay; ValueError while there is none."""
        return ray.get_actor(self._replay_name)

    async def _next_version(self, publisher: ModelPublisher) -> int:
        newest = self._shelf.newest()
        kept = 0 if newest is None else newest.version
        return max(kept, await publisher.latest_version()) + 1

    async def _deliver(self, publisher: ModelPublisher) -> None:
        """Judge the learner's policy, and send it if it passes."""
        candidate = await asyncio.to_thread(self._evaluations.candidate)
        if candidate is None or candidate.step in (0, self._considered_step):
            return
        try:
            passed = await asyncio.to_thread(self._consider, candidate)
            if passed is not None:
                version = await self._next_version(publisher)
                await asyncio.to_thread(shelve, self._shelf, version, *passed)
                await self._send_newest(publisher)
        except (OSError, RayError, CheckpointError, EvaluationError, PolicyError) as error:
            self._evaluations.say("policy_refused", cause_of(error), "the next one is due")
        self._considered_step = candidate.step

    def _consider(self, candidate: Candidate) -> tuple[Packed, Evaluation | None] | None:
        """Export, check and judge a candidate; None where it is not to be sent."""
        checkpoint = CheckpointStore.load(candidate.path)
        policy = load_policy(self._config, checkpoint)
        rows = self._real_rows()
        if rows is None:
            return None
        packed = pack(policy, checkpoint, rows)
        evaluation: Evaluation | None = None
        if self._config.stream.judged_in == "simulator":
            evaluation = self._judge.evaluate(policy, checkpoint, self._clock.wall_s())
            self._evaluations.take(evaluation, candidate)
        said = verdict(self._config, evaluation, self._shelf.newest())
        if not said.send:
            self._held_back += 1
            self._evaluations.say("policy_held_back", said.reason, "rovers keep theirs")
            return None
        return packed, evaluation

    def _real_rows(self) -> np.ndarray | None:
        """Rows that rovers sent last; None while replay holds none, or is being replaced."""
        try:
            replay = self._replay
        except ValueError:
            return None
        refs = read(replay.newest_blocks.remote(2), _READ_TIMEOUT_S)
        blocks: list[Block] = [read(ref, _READ_TIMEOUT_S) for ref in refs]
        if not blocks:
            return None
        return np.concatenate([block.observations for block in blocks])[:_CHECKED_ROWS]

    async def _look_at_field(self, publisher: ModelPublisher) -> None:
        """Take back a policy that rovers drive clearly worse with than with one before it."""
        stream, newest = self._config.stream, self._shelf.newest()
        if stream.judged_in != "field" or newest is None:
            return
        kept = {record.version: record for record in self._shelf.records()}
        found = read_scores(self._run_dir / self._task)
        scores = {version: score for version, score in found.items() if version in kept}
        back = go_back_to(scores, newest.version, stream.gate_margin, stream.gate_episodes)
        if back is not None and kept[back].sha256 != newest.sha256:
            cause = (
                f"version {newest.version} returns {scores[newest.version].mean_return:.3g} in "
                f"the field, version {back} {scores[back].mean_return:.3g}"
            )
            version = await self._go_back(publisher, back)
            self._evaluations.say("policy_taken_back", cause, f"sent again as {version}")

    async def _roll_back(self, publisher: ModelPublisher) -> None:
        while not self._rollbacks.empty():
            to, answer = self._rollbacks.get_nowait()
            try:
                answer.set_result(await self._go_back(publisher, self._chosen(to)))
            except (PolicyShelfError, StreamError, OSError) as error:
                answer.set_exception(error)

    def _chosen(self, to: int | None) -> int:
        if to is not None:
            return to
        versions = [record.version for record in self._shelf.records()]
        if len(versions) < 2:
            raise PolicyShelfError("there is no policy before the newest one")
        return versions[-2]

    async def _go_back(self, publisher: ModelPublisher, to: int) -> int:
        version = await self._next_version(publisher)
        await asyncio.to_thread(go_back, self._shelf, to, version)
        await self._send_newest(publisher)
        return version
