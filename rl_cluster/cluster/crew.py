"""The supervisor's hands: every worker of a run, and the weights' holder, looked at and mended.

Invariant: what is to be done is decided by `supervision.plan` from records; here it is only done.
Nothing here waits for a worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ray.exceptions import RayError

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, NameTaken, Ref, cause_of, not_here, read, spawn
from rl_cluster.cluster.messages import StopReport
from rl_cluster.cluster.placement import Places, at_home
from rl_cluster.cluster.task_group import TaskGroup
from rl_cluster.cluster.weights_actor import WeightsActor
from rl_cluster.cluster.worker import Notice, Worker, WorkerState
from rl_cluster.config import ClusterConfig
from rl_cluster.fence import FenceDamaged, FenceHeld
from rl_cluster.supervision.health import Deadlines
from rl_cluster.supervision.plan import (
    Desired,
    GiveUp,
    Park,
    RestartRule,
    Retire,
    Start,
    Stop,
    plan,
)
from rl_cluster.supervision.recurrence import Recurrence

_log = logging.getLogger(__name__)
_BEAT_S = 1.0

Say = Callable[..., None]
"""Writes an incident: task, worker, kind, cause, action, detail."""


class Crew:
    """All workers of a run."""

    def __init__(
        self,
        rule: RestartRule,
        deadlines: Deadlines,
        seed: int,
        say: Say,
        cluster: ClusterConfig,
    ) -> None:
        self.groups: dict[str, TaskGroup] = {}
        self.places = Places(cluster)
        self._rule, self._say, self._recurrence = rule, say, Recurrence()
        self._now_s = 0.0
        self._rng = np.random.default_rng(seed)
        self.weights: Actor = spawn(
            WeightsActor, names.WEIGHTS, placement=at_home(), restarted_by_ray=True
        )
        self._weights_place = Worker(names.WEIGHTS, "", "weights", deadlines)
        self._weights_place.fill(self.weights, 0.0)

    def restore(self, states: dict[str, WorkerState], now_s: float, adopt: Iterable[str]) -> None:
        """Go on from what an earlier supervisor knew, and take the live actors of some tasks."""
        adopted = set(adopt)
        for group in self.groups.values():
            for worker in group.workers():
                if worker.name in states:
                    worker.restore(states[worker.name], now_s)
            if group.plan.task in adopted:
                group.adopt(now_s)

    def states(self, now_s: float) -> dict[str, WorkerState]:
        """What a later supervisor needs to know."""
        return {
            worker.name: worker.state(now_s)
            for group in self.groups.values()
            for worker in group.workers()
        }

    def is_changing(self, now_s: float) -> bool:
        """Whether a worker may get on, and others wait for it, at any moment."""
        workers = (worker for group in self.groups.values() for worker in group.workers())
        return any(worker.is_coming(now_s) for worker in workers)

    def look(self, now_s: float) -> None:
        """Read what workers said; say who failed."""
        self._now_s = now_s
        self._look_at_weights(now_s)
        for group in self.groups.values():
            for worker in group.workers():
                self._look_at(group, worker, now_s)

    def mend(
        self, tasks: frozenset[str], given_up: frozenset[str], now_s: float, wall_s: float
    ) -> tuple[list[Park], list[GiveUp]]:
        """Bring what runs to what should; return what was given up, for the supervisor to keep."""
        for group in self.groups.values():
            if not group.evaluates:
                group.evaluator.empty()
        self._move_a_rollout(now_s)
        workers = {w.name: w for group in self.groups.values() for w in group.wanted()}
        records = [worker.record() for worker in workers.values()]
        parks: list[Park] = []
        gifts: list[GiveUp] = []
        for action in plan(Desired(tasks, given_up, self._rule), records, now_s, self._rng):
            if isinstance(action, Park):
                parks.append(action)
            elif isinstance(action, GiveUp):
                gifts.append(action)
                self._say(
                    "worker_parked", action.reason, "training goes on", workers[action.worker]
                )
            elif isinstance(action, Retire):
                self._retire(self.groups[action.task], now_s)
            elif isinstance(action, Stop):
                self._say("worker_replaced", action.reason, "restart", workers[action.worker])
                workers[action.worker].empty()
            else:
                assert isinstance(action, Start)
                self._start(workers[action.worker], now_s, wall_s)
        return parks, gifts

    def _move_a_rollout(self, now_s: float) -> None:
        """Empty the place of one that another node would do better for: it is filled there."""
        games = (group for group in self.groups.values() if not group.config.is_fleet)
        rollouts = {worker.name: worker for group in games for worker in group.rollouts}
        healths = {name: rollout.health for name, rollout in rollouts.items()}
        nodes = {name: health.node_id if health else None for name, health in healths.items()}
        name = self.places.misplaced(nodes, now_s)
        if name is not None and nodes[name] is not None:
            cause = "another node has fewer rollouts per core"
            self._say("rollout_moved", cause, "made anew there", rollouts[name])
            rollouts[name].empty()

    def save(self, tasks: list[str], timeout_s: float, beat: Callable[[], None]) -> None:
        """Let learners save and leave their loops; one that cannot keeps its last checkpoint.

        Args:
          timeout_s: for all of them.
          beat: called while they save, since whoever waits has not died.
        """
        calls = {task: self.groups[task].save() for task in tasks}
        deadline_s = time.monotonic() + timeout_s
        waiting = [ref for refs in calls.values() for ref in refs]
        while waiting and time.monotonic() < deadline_s:
            beat()
            waiting = not_here(waiting, _BEAT_S)
        for task, refs in calls.items():
            self._hear(self.groups[task], refs, time.monotonic())

    def _retire(self, group: TaskGroup, now_s: float) -> None:
        refs = group.leave(now_s)
        if refs is not None:
            self._hear(group, refs, time.monotonic())
            group.stop()

    def _hear(self, group: TaskGroup, refs: list[Ref], deadline_s: float) -> None:
        """Take the answers of those that were asked to save."""
        for worker, ref in zip((group.learner, group.replay), refs, strict=False):
            try:
                answer = read(ref, max(0.1, deadline_s - time.monotonic()))
            except RayError as error:
                self._say_not_saved(worker, cause_of(error))
            else:
                if worker is group.learner:
                    self._take_last_report(worker, answer)

    def _take_last_report(self, learner: Worker, report: StopReport) -> None:
        learner.status = report.status
        self._pass_on(report.status.notices, learner)
        if not report.saved:
            self._say_not_saved(learner, "its checkpoint could not be written")

    def _say_not_saved(self, worker: Worker, cause: str) -> None:
        self._say("not_saved", cause, "what it saved last stands", worker)

    def _start(self, worker: Worker, now_s: float, wall_s: float) -> None:
        try:
            self.groups[worker.task].start(worker, now_s, wall_s)
        except NameTaken:
            # The one before has still to give up its name: the next tick tries again.
            return
        except (RayError, ValueError, FenceHeld, FenceDamaged) as error:
            worker.fail(now_s, cause_of(error))
        except OSError as error:  # a full disk is no fault of the worker: the next tick tries again
            _log.error("%s not started: %s", worker.name, error)

    def _wait_for_a_node(self, worker: Worker, now_s: float) -> None:
        """One that no node has room for has not failed: nodes come later."""
        if worker.actor is None or not worker.is_awaited(now_s):
            return
        if not self.places.waits_for(worker.actor):
            return
        worker.wait_longer(now_s)
        if self._recurrence.is_news(worker.name, "worker_waits", "", now_s):
            cause = "no node has free what it reserves, it is made slowly, or Ray does not answer"
            self._say("worker_waits", cause, "waited for", worker)

    def _look_at(self, group: TaskGroup, worker: Worker, now_s: float) -> None:
        self._wait_for_a_node(worker, now_s)
        cause, notices = worker.look(now_s)
        if cause is None and worker.actor is not None:
            others_cause = self._failed_to_others(group, worker, now_s)
            cause = None if others_cause is None else worker.fail(now_s, others_cause)
        if cause is not None:
            self._say("worker_failed", cause, "restart", worker)
        self._say_recovered(worker, now_s)
        if worker.health is not None and worker.health.phase == "ended" and not group.is_leaving:
            worker.empty()  # asked to leave by a supervisor that died before it ended it
        self._pass_on(notices, worker)

    def _failed_to_others(self, group: TaskGroup, worker: Worker, now_s: float) -> str | None:
        """Why a worker that says that it is well counts as failed."""
        if worker is group.replay:
            return group.stalled(now_s)
        life, cause = group.failed_collection(worker)
        return cause if life == worker.epoch else None

    def _pass_on(self, notices: Iterable[Notice], worker: Worker) -> None:
        """Say what a worker has to say, as far as it is news."""
        for said in notices:
            if self._recurrence.is_news(worker.name, said["kind"], said["nature"], self._now_s):
                self._say(said["kind"], said["cause"], said["action"], worker, said["detail"])

    def _say_recovered(self, worker: Worker, now_s: float) -> None:
        after_s = worker.recovered_after_s(now_s)
        if after_s is not None:
            cause = f"it gets on {after_s:.0f} s after it was found to have failed"
            self._say("worker_recovered", cause, "none", worker)

    def _look_at_weights(self, now_s: float) -> None:
        """Ray brings it back by itself when it dies; one that hangs has to die first."""
        place = self._weights_place
        cause, _ = place.look(now_s)
        if cause is not None:
            self._say("worker_failed", cause, "restarted by Ray", place)
            place.fill(self.weights, now_s)
        self._say_recovered(place, now_s)


def sayer(hub: Any) -> Say:
    """Incidents of workers, as the hub writes them."""

    def say(kind: str, cause: str, action: str, worker: Worker, detail: str = "") -> None:
        hub.incident(worker.task or None, worker.name, kind, cause, action, detail)

    return say
