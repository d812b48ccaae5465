"""The actors of one task: how each is made, and how they are joined.

Invariant: actors are joined in the direction of the flow: rollouts are given to replay, replay to
the learner; nothing is handed the other way but weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, spawn
from rl_cluster.cluster.evaluator_actor import EvaluatorActor
from rl_cluster.cluster.learner_actor import LearnerActor
from rl_cluster.cluster.messages import (
    EvaluatorStatus,
    LearnerStatus,
    ReplayStatus,
    RunClock,
)
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.cluster.rollout_actor import RolloutActor
from rl_cluster.cluster.worker import Worker
from rl_cluster.config import RunConfig
from rl_cluster.environments import EnvironmentSpec


@dataclass(frozen=True)
class TaskPlan:
    """What the actors of one task are made from."""

    task: str
    run: RunConfig
    spec: EnvironmentSpec
    task_dir: Path
    tracker_id: str
    clock: RunClock
    gpu_share: float


class TaskGroup:
    """Places for a task's replay, learner, rollouts and evaluator, in the order of dependence."""

    def __init__(self, plan: TaskPlan, weights: Actor) -> None:
        self.plan, self._weights = plan, weights
        self.config = plan.run.tasks[plan.task]
        timeout_s = plan.run.supervisor.working_timeout_s
        task = plan.task
        self.replay = Worker(names.replay_name(task), task, "replay", timeout_s)
        self.learner = Worker(names.learner_name(task), task, "learner", timeout_s)
        self.rollouts = [
            Worker(names.rollout_name(task, i), task, "rollout", timeout_s)
            for i in range(self.config.rollout.actors)
        ]
        self.evaluator = Worker(names.evaluator_name(task), task, "evaluator", timeout_s)

    def workers(self) -> Iterator[Worker]:
        """All places."""
        yield from (self.replay, self.learner, *self.rollouts, self.evaluator)

    def start(self, worker: Worker) -> None:
        """Make an actor for an empty place; Ray makes it in the background."""
        makers: dict[str, Any] = {
            "replay": self._start_replay,
            "learner": self._start_learner,
            "rollout": self._start_rollout,
            "evaluator": self._start_evaluator,
        }
        makers[worker.kind](worker)

    def stop(self) -> None:
        """Kill every actor of the task."""
        for worker in self.workers():
            worker.empty()

    @property
    def restarts(self) -> int:
        """Actors that were replaced."""
        return sum(max(0, worker.starts - 1) for worker in self.workers())

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

    def _start_replay(self, worker: Worker) -> None:
        actor = spawn(ReplayActor, worker.name, self.plan.task, self.config, self._seed(worker))
        worker.filled(actor, None)

    def _start_learner(self, worker: Worker) -> None:
        plan = self.plan
        actor = spawn(
            LearnerActor,
            worker.name,
            plan.task,
            self.config,
            plan.spec,
            str(plan.task_dir),
            self._seed(worker),
            self.replay.actor,
            self._weights,
            plan.tracker_id,
            plan.run.supervisor.working_timeout_s,
            max_concurrency=8,
            num_gpus=plan.gpu_share,
        )
        worker.filled(actor, actor.run.remote())

    def _start_rollout(self, worker: Worker) -> None:
        index = self.rollouts.index(worker)
        actor = spawn(
            RolloutActor,
            worker.name,
            self.plan.task,
            index,
            self.config,
            self._seed(worker),
            self._weights,
        )
        worker.filled(actor, None)
        assert self.replay.actor is not None
        self.replay.actor.add_rollout.remote(worker.name, worker.starts, actor)

    def _start_evaluator(self, worker: Worker) -> None:
        plan = self.plan
        actor = spawn(
            EvaluatorActor,
            worker.name,
            plan.task,
            self.config,
            plan.spec,
            str(plan.task_dir),
            plan.clock,
            max_concurrency=2,
        )
        worker.filled(actor, actor.run.remote())

    def _seed(self, worker: Worker) -> int:
        """A seed of this place, and of this life of it: a second life must not repeat the first.

        The learner's is the same in every life: its parameters come from a checkpoint.
        """
        life = 0 if worker.kind == "learner" else worker.starts + int(self.plan.clock.before_s)
        root = np.random.SeedSequence([self.plan.run.seed, zlib.crc32(worker.name.encode()), life])
        return int(root.generate_state(1)[0])
