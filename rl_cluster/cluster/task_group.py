"""The actors of one task: how each is made, and how they are joined.

Invariant: actors are joined in the direction of the flow: rollouts are given to replay, replay to
the learner; nothing is handed the other way but weights. Each life of a place has the next epoch,
which was advanced on disk before it began.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, Ref, is_here, spawn
from rl_cluster.cluster.courier_actor import CourierActor, CourierStatus
from rl_cluster.cluster.evaluator_actor import EvaluatorActor
from rl_cluster.cluster.field_actor import FieldActor, FieldStatus
from rl_cluster.cluster.learner_actor import LearnerActor
from rl_cluster.cluster.messages import EvaluatorStatus, LearnerStatus, ReplayStatus
from rl_cluster.cluster.placement import Places, at_home
from rl_cluster.cluster.reader_actor import ReaderActor, ReaderStatus
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.cluster.rollout_actor import RolloutActor
from rl_cluster.cluster.worker import Worker
from rl_cluster.config import TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.fence import Fence, advance
from rl_cluster.replay.block import schema_of
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.supervision.health import Deadlines, stalled_because

_FENCE_TIMEOUT_S = 2.0
_SAVE_AGAIN_S = 600.0
"""How long a learner that has to leave tries to save while that fails."""
_RETIRE_TIMEOUT_S = _SAVE_AGAIN_S + 60.0
_FLUSH_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class TaskPlan:
    """What the actors of one task are made from."""

    task: str
    run_dir: Path
    seed: int
    spec: EnvironmentSpec
    tracker_id: str
    gpu_share: float
    deadlines: Deadlines
    places: Places


class TaskGroup:
    """Places for a task's replay, learner, rollouts and evaluator, in the order of dependence.

    A fleet has a reader in a rollout's place, a courier in the evaluator's, and a field where its
    server is a run's own.
    """

    def __init__(self, plan: TaskPlan, config: TaskConfig, weights: Actor) -> None:
        self.plan, self.config, self._weights = plan, config, weights
        self.evaluates = True
        """Whether the evaluator belongs to what should run."""
        task, deadlines = plan.task, plan.deadlines
        self.replay = Worker(names.replay_name(task), task, "replay", deadlines)
        self.learner = Worker(names.learner_name(task), task, "learner", deadlines)
        self.field: list[Worker] = []
        if config.is_fleet:
            self.rollouts = [Worker(names.reader_name(task), task, "reader", deadlines)]
            self.evaluator = Worker(names.courier_name(task), task, "courier", deadlines)
            if config.stream.url is None:
                self.field = [Worker(names.field_name(task), task, "field", deadlines)]
        else:
            self.rollouts = [
                Worker(names.rollout_name(task, i), task, "rollout", deadlines)
                for i in range(config.rollout.actors)
            ]
            self.evaluator = Worker(names.evaluator_name(task), task, "evaluator", deadlines)
        self._leaving: tuple[list[Ref], float] | None = None

    def workers(self) -> Iterator[Worker]:
        """All places."""
        yield from (*self.field, self.replay, self.learner, *self.rollouts, self.evaluator)

    def wanted(self) -> Iterator[Worker]:
        """Places that should be filled while the task is at work."""
        yield from (*self.field, self.replay, self.learner, *self.rollouts)
        if self.evaluates:
            yield self.evaluator

    def start(self, worker: Worker, now_s: float, wall_s: float) -> None:
        """Make an actor for an empty place; Ray makes it in the background.

        Args:
          worker: the place.
          now_s: the supervisor's watch.
          wall_s: the run's time at work.

        Raises:
          FenceHeld: whoever was there before still commits.
          NameTaken: whoever was there before is still ending.
        """
        self._leaving = None  # all of those that were leaving have died
        path = self.plan.run_dir / "control" / "epochs" / worker.name.replace("/", "-")
        path.parent.mkdir(exist_ok=True)
        worker.epoch = advance(path, _FENCE_TIMEOUT_S)
        fence = Fence(path, worker.epoch)
        makers: dict[str, Any] = {
            "replay": self._start_replay,
            "learner": self._start_learner,
            "rollout": self._start_rollout,
            "evaluator": self._start_evaluator,
            "reader": self._start_reader,
            "courier": self._start_courier,
            "field": self._start_field,
        }
        worker.fill(makers[worker.kind](worker, fence, wall_s), now_s)
        if worker.kind in ("rollout", "reader"):
            assert self.replay.actor is not None
            self.replay.actor.add_rollout.remote(worker.name, worker.epoch, worker.actor)

    def adopt(self, now_s: float) -> None:
        """Take the actors that an earlier supervisor left."""
        for worker in self.workers():
            try:
                worker.fill(ray.get_actor(worker.name), now_s)
            except ValueError:  # there is none of that name
                continue

    def leave(self, now_s: float) -> list[Ref] | None:
        """Let the learner save; return what `save` does once that is done, or has taken too long.

        It goes on learning while the disk takes nothing, for ten minutes: what it has learned since
        its last checkpoint would be lost. Waits for nothing: call it until it returns something,
        and then `stop`.
        """
        if self._leaving is None:
            self._leaving = self.save(_SAVE_AGAIN_S), now_s + _RETIRE_TIMEOUT_S
        refs, deadline_s = self._leaving
        if now_s < deadline_s and not all(map(is_here, refs)):
            return None
        return refs

    @property
    def is_leaving(self) -> bool:
        """Its learner was asked to leave its loop, so it has to be made anew in any case."""
        return self._leaving is not None

    def save(self, save_again_s: float = 0.0) -> list[Ref]:
        """Let the learner save and leave its loop, and replay bring its journal to disk.

        The learner's answer, a `StopReport`, is the first; one that has never said how it is, is
        still being made and has nothing new to save. It tries for `save_again_s`.
        """
        if self._leaving is not None:  # it was asked already, and answers once
            return self._leaving[0]
        refs: list[Ref] = []
        if self.learner.actor is not None and self.learner.status is not None:
            refs.append(self.learner.actor.stop.remote(save_again_s))
            if self.replay.actor is not None:
                refs.append(self.replay.actor.flush.remote(_FLUSH_TIMEOUT_S))
        return refs

    def change(self, config: TaskConfig) -> None:
        """Let live settings take effect; those made from now on have them anyway."""
        self.config = config
        for worker in self.workers():
            if worker.actor is not None:
                worker.actor.change.remote(config)

    @property
    def is_empty(self) -> bool:
        """No place is filled."""
        return all(worker.actor is None for worker in self.workers())

    @property
    def is_at_work(self) -> bool:
        """Replay and learner are made and have said how they are."""
        return self.replay_status is not None and self.learner_status is not None

    def stop(self) -> None:
        """Kill every actor of the task."""
        self._leaving = None
        for worker in self.workers():
            worker.empty()

    @property
    def restarts(self) -> int:
        """Actors that were replaced."""
        return sum(worker.restarts for worker in self.workers())

    @property
    def memory_bytes(self) -> int:
        """Resident memory of all workers, as each said last; shared pages count for each."""
        healths = (worker.health for worker in self.workers())
        return sum(health.memory_bytes for health in healths if health is not None)

    def stalled(self, now_s: float) -> str | None:
        """Why replay counts as failed though it is well: learner and rollouts wait for it.

        A fleet's readers wait for rovers, which may be silent for as long as they like.
        """
        if self.config.is_fleet:
            return None
        age_s = self.learner_status.request_age_s if self.learner_status else None
        # One without a node may never come, and the others go on.
        rollouts = [worker.seen for worker in self.rollouts if worker.health is not None]
        return stalled_because(age_s, rollouts, now_s, self.plan.deadlines.working_s)

    def failed_collection(self, worker: Worker) -> tuple[int, str]:
        """The life of a rollout whose call for blocks failed last, and why; life 0: none did."""
        failed = self.replay_status.failed_rollouts if self.replay_status else {}
        return failed.get(worker.name, (0, ""))

    @property
    def replay_status(self) -> ReplayStatus | None:
        """What replay last said."""
        status: ReplayStatus | None = self.replay.status
        return status

    @property
    def learner_status(self) -> LearnerStatus | None:
        """What the learner last said."""
        status: LearnerStatus | None = self.learner.status
        return status

    @property
    def evaluator_status(self) -> EvaluatorStatus | None:
        """What the evaluator last said."""
        status: EvaluatorStatus | None = self.evaluator.status
        return status

    @property
    def reader_status(self) -> ReaderStatus | None:
        """What a fleet's reader last said; None for a game."""
        status: ReaderStatus | None = self.rollouts[0].status
        return status

    @property
    def courier_status(self) -> CourierStatus | None:
        """What a fleet's courier last said; None for a game."""
        status = self.evaluator.status
        return status if isinstance(status, CourierStatus) else None

    @property
    def field_status(self) -> FieldStatus | None:
        """What a simulated field last said; None where there is none."""
        status: FieldStatus | None = self.field[0].status if self.field else None
        return status

    def _start_replay(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        return spawn(
            ReplayActor,
            worker.name,
            self.plan.task,
            self.config,
            self._seed(worker),
            JournalPlace(
                self.plan.run_dir / self.plan.task / "replay",
                schema_of(self.plan.spec.obs_shape, self.plan.spec.obs_dtype),
                fence,
            ),
            fence.epoch,
            placement=at_home(),
        )

    def _start_learner(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        plan = self.plan
        return spawn(
            LearnerActor,
            worker.name,
            plan.task,
            self.config,
            plan.spec,
            str(plan.run_dir),
            self._seed(worker),
            self.replay.actor,
            self._weights,
            plan.tracker_id,
            plan.deadlines.working_s,
            fence,
            max_concurrency=8,
            num_gpus=plan.gpu_share,
            placement=at_home(),
        )

    def _start_rollout(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        return spawn(
            RolloutActor,
            worker.name,
            self.plan.task,
            self.rollouts.index(worker),
            self.config,
            self._seed(worker),
            self._weights,
            fence.epoch,
            max_concurrency=2,
            placement=self.plan.places.options(worker.name),
        )

    def _start_evaluator(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        return spawn(
            EvaluatorActor,
            worker.name,
            self.plan.task,
            self.config,
            self.plan.spec,
            str(self.plan.run_dir / self.plan.task),
            wall_s,
            fence,
            max_concurrency=4,
            placement=at_home(),
        )

    def _start_reader(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        plan = self.plan
        return spawn(
            ReaderActor,
            worker.name,
            plan.task,
            self.config,
            str(plan.run_dir),
            fence.epoch,
            placement=at_home(),
        )

    def _start_courier(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        return spawn(
            CourierActor,
            worker.name,
            self.plan.task,
            self.config,
            str(self.plan.run_dir),
            self.replay.name,
            wall_s,
            fence,
            max_concurrency=4,
            placement=at_home(),
        )

    def _start_field(self, worker: Worker, fence: Fence, wall_s: float) -> Actor:
        plan = self.plan
        return spawn(
            FieldActor,
            worker.name,
            plan.task,
            self.config,
            str(plan.run_dir),
            self._seed(worker),
            fence.epoch,
            max_concurrency=2,
            placement=at_home(),
        )

    def _seed(self, worker: Worker) -> int:
        """A seed of this place, and of this life of it: a second life must not repeat the first.

        The learner's is the same in every life: its parameters come from a checkpoint.
        """
        life = 0 if worker.kind == "learner" else worker.epoch - 1
        root = np.random.SeedSequence([self.plan.seed, zlib.crc32(worker.name.encode()), life])
        return int(root.generate_state(1)[0])
