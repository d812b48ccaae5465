"""The supervisor: compares what should run with what runs, and mends the difference.

Invariant: decisions are made by `supervision.plan` from records; this shell only looks, performs
and reports. It takes no part in the flow of data, so its pace changes nothing in training.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ray.exceptions import RayError

from rl_cluster.cluster import host, names
from rl_cluster.cluster.actors import Ref, cause_of, read, spawn
from rl_cluster.cluster.messages import RunClock, StopReport
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.task_group import TaskGroup, TaskPlan
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.cluster.weights_actor import WeightsActor
from rl_cluster.cluster.worker import Worker
from rl_cluster.config import RunConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.supervision.plan import GiveUp, Park, RestartRule, Stop, plan
from rl_cluster.telemetry.summary import RunState, Summary

_TICK_S = 1.0
_SAVE_TIMEOUT_S = 4.0
_CALM_SAVE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RunPlan:
    """What a run is made from."""

    name: str
    run_dir: Path
    config: RunConfig
    """Effective configuration."""
    specs: dict[str, EnvironmentSpec]
    tracker_ids: dict[str, str]
    clock: RunClock
    gpus: int
    earlier: Summary | None
    """How the session before ended."""


class SupervisorActor:
    """Supervisor of one run."""

    def __init__(self, run: RunPlan) -> None:
        self._run, config = run, run.config
        self._hub = TelemetryHub(run.name, run.run_dir, config, run.tracker_ids)
        self._rule = RestartRule(
            config.supervisor.backoff_s, config.supervisor.max_restarts, config.supervisor.window_s
        )
        self._rng = np.random.default_rng(config.seed)
        self._weights = spawn(WeightsActor, names.WEIGHTS, stateless=True)
        self._groups = {task: self._group(task) for task in config.tasks}
        earlier = run.earlier["tasks"] if run.earlier else {}
        self._reports = {t: TaskReport(g, earlier.get(t)) for t, g in self._groups.items()}
        self._given_up: set[str] = set()
        self._paused: set[str] = set()
        self._stop_as: RunState | None = None
        self._wake = threading.Event()
        self._object_store_bytes: int | None = None
        self._summary = self._compose("running")
        self._row_due_s = 0.0

    def run(self) -> Summary:
        """Supervise until the run is over; return its last summary, everything saved."""
        try:
            state = self._supervise()
        except Exception:  # actor boundary: save and say so before the run ends
            self._save(self._live_tasks(), _CALM_SAVE_TIMEOUT_S)
            self._report("failed")
            raise
        hurried = state == "interrupted"
        self._save(self._live_tasks(), _SAVE_TIMEOUT_S if hurried else _CALM_SAVE_TIMEOUT_S)
        self._report(state)
        self._hub.close()
        return self._summary

    def _supervise(self) -> RunState:
        while True:
            if (state := self._stop_as or self._natural_end()) is not None:
                return state
            self._tick(time.monotonic())
            self._wake.wait(_TICK_S)
            self._wake.clear()

    def summary(self) -> Summary:
        """The newest summary."""
        return self._summary

    def stop(self) -> None:
        """Save everything and end the run as interrupted."""
        self._stop_as = "interrupted"
        self._wake.set()

    def pause(self, task: str | None) -> None:
        """Let a task's learner rest, or every one, until `resume`; rollouts stop by themselves."""
        self._paused |= set(self._chosen(task))
        self._wake.set()

    def resume(self, task: str | None) -> None:
        """Let paused learners go on."""
        self._paused -= set(self._chosen(task))
        self._wake.set()

    def checkpoint(self, task: str | None) -> dict[str, str | None]:
        """Save a task now, or every one; task to its checkpoint's path."""
        chosen = {t: self._groups[t].learner.actor for t in self._chosen(task)}
        calls: dict[str, Ref] = {
            t: actor.checkpoint.remote() for t, actor in chosen.items() if actor is not None
        }
        return {t: read(ref, _CALM_SAVE_TIMEOUT_S) for t, ref in calls.items()}

    def _tick(self, now_s: float) -> None:
        for group in self._live_groups():
            for worker in group.workers():
                self._look(group, worker, now_s)
        self._mend(now_s)
        for report in self._reports.values():
            report.refresh(now_s)
        self._complete_tasks()
        self._summary = self._compose("running")
        self._hub.summary(self._summary)
        if now_s >= self._row_due_s:
            self._row_due_s = now_s + self._run.config.telemetry.period_s
            self._write_rows()

    def _look(self, group: TaskGroup, worker: Worker, now_s: float) -> None:
        cause, notices = worker.look(now_s)
        if cause is None and worker.actor is not None:
            life, collect_cause = group.failed_collection(worker)
            if life == worker.starts:
                cause = worker.fail(now_s, collect_cause)
        if cause is not None:
            self._hub.incident(group.plan.task, worker.name, "worker_failed", cause, "restart")
        for notice in notices:
            self._hub.incident(group.plan.task, worker.name, **notice)

    def _mend(self, now_s: float) -> None:
        workers = {w.name: w for group in self._groups.values() for w in group.workers()}
        records = [worker.record() for worker in workers.values()]
        ended = {task for task, report in self._reports.items() if report.ended}
        parked = frozenset(ended | self._given_up)
        for action in plan(records, parked, now_s, self._rule, self._rng):
            if isinstance(action, Park):
                self._park(action)
            elif isinstance(action, GiveUp):
                self._give_up(workers[action.worker], action.reason)
            elif isinstance(action, Stop):
                self._stop_for(workers[action.worker], action.reason)
            else:
                self._start(workers[action.worker], now_s)
        self._apply_pauses()

    def _start(self, worker: Worker, now_s: float) -> None:
        try:
            self._groups[worker.task].start(worker)
        except (RayError, ValueError) as error:  # ValueError: the name is still taken
            worker.fail(now_s, cause_of(error))

    def _stop_for(self, worker: Worker, reason: str) -> None:
        self._hub.incident(worker.task, worker.name, "worker_replaced", reason, "restart")
        worker.empty()

    def _give_up(self, worker: Worker, reason: str) -> None:
        self._given_up.add(worker.name)
        self._hub.incident(worker.task, worker.name, "worker_parked", reason, "training goes on")

    def _park(self, park: Park) -> None:
        self._save([park.task], _SAVE_TIMEOUT_S)
        self._reports[park.task].end("failed", park.reason)
        self._groups[park.task].stop()
        self._hub.incident(park.task, None, "task_parked", park.reason, "the other tasks go on")

    def _apply_pauses(self) -> None:
        """Pausing is desired state: a learner that was replaced meanwhile rests, too."""
        for group in self._live_groups():
            status, actor = group.learner_status, group.learner.actor
            wanted = group.plan.task in self._paused
            if status is not None and actor is not None and status.paused != wanted:
                (actor.pause if wanted else actor.resume).remote()

    def _complete_tasks(self) -> None:
        limit = self._run.config.max_env_steps
        for task in self._live_tasks():
            if limit is not None and self._reports[task].env_steps >= limit:
                self._save([task], _CALM_SAVE_TIMEOUT_S)
                self._reports[task].end("completed")
                self._groups[task].stop()

    def _natural_end(self) -> RunState | None:
        ended = [report.ended for report in self._reports.values()]
        if all(state is not None for state in ended):
            return "failed" if all(state == "failed" for state in ended) else "completed"
        limit_s = self._run.config.max_seconds
        over = limit_s is not None and self._run.clock.session_s() >= limit_s
        return "completed" if over else None

    def _save(self, tasks: list[str], timeout_s: float) -> None:
        """Let learners save and leave their loops; one that cannot keeps its last checkpoint."""
        learners = [self._groups[task].learner for task in tasks]
        # A learner that has never answered is still being made and has nothing new to save.
        calls: list[tuple[Worker, Ref]] = [
            (w, w.actor.stop.remote()) for w in learners if w.actor and w.status is not None
        ]
        deadline_s = time.monotonic() + timeout_s
        for learner, ref in calls:
            try:
                self._take_last_report(learner, read(ref, max(0.1, deadline_s - time.monotonic())))
            except RayError as error:
                self._say_not_saved(learner, cause_of(error))

    def _take_last_report(self, learner: Worker, report: StopReport) -> None:
        learner.status = report.status
        self._reports[learner.task].refresh(time.monotonic())
        for notice in report.status.notices:
            self._hub.incident(learner.task, learner.name, **notice)
        if not report.saved:
            self._say_not_saved(learner, "its checkpoint could not be written")

    def _say_not_saved(self, learner: Worker, cause: str) -> None:
        action = "its last checkpoint stands"
        self._hub.incident(learner.task, learner.name, "not_saved", cause, action)

    def _report(self, state: RunState) -> None:
        self._write_rows()
        self._summary = self._compose(state)
        self._hub.summary(self._summary)

    def _write_rows(self) -> None:
        wall_s = self._run.clock.wall_s()
        self._object_store_bytes = host.object_store_bytes()
        for task, report in self._reports.items():
            self._hub.row(wall_s, task, report.env_steps, report.metrics())
        self._hub.row(
            wall_s,
            None,
            None,
            {
                "incidents": self._hub.incidents,
                "object_store_bytes": self._object_store_bytes,
                "host_memory_used_bytes": host.host_memory_used_bytes(),
                "run_memory_bytes": host.run_memory_bytes(),
                "wall_s": wall_s,
            },
        )
        self._hub.flush()

    def _compose(self, state: RunState) -> Summary:
        return {
            "run": self._run.name,
            "state": state,
            "updated_at": time.time(),
            "wall_s": self._run.clock.wall_s(),
            "max_seconds": self._run.config.max_seconds,
            "tier": {"requested": "custom", "effective": "custom"},
            "incidents": self._hub.incidents,
            "object_store_bytes": self._object_store_bytes,
            "tasks": {task: report.summary() for task, report in self._reports.items()},
        }

    def _live_tasks(self) -> list[str]:
        return [task for task, report in self._reports.items() if report.ended is None]

    def _live_groups(self) -> list[TaskGroup]:
        return [self._groups[task] for task in self._live_tasks()]

    def _chosen(self, task: str | None) -> list[str]:
        live = self._live_tasks()
        if task is None:
            return live
        if task not in live:
            raise ValueError(
                f"no task {task!r} is at work in this run: {', '.join(live) or 'none'}"
            )
        return [task]

    def _group(self, task: str) -> TaskGroup:
        run = self._run
        task_plan = TaskPlan(
            task,
            run.config,
            run.specs[task],
            run.run_dir / task,
            run.tracker_ids[task],
            run.clock,
            min(1.0, run.gpus / len(run.config.tasks)) if run.gpus else 0.0,
        )
        return TaskGroup(task_plan, self._weights)
