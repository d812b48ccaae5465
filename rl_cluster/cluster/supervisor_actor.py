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
from rl_cluster.cluster.actors import Actor, Ref, cause_of, read, spawn
from rl_cluster.cluster.messages import RunClock
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.task_group import TaskGroup, TaskPlan
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.cluster.weights_actor import WeightsActor
from rl_cluster.cluster.worker import Worker
from rl_cluster.config import RunConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.supervision.plan import Park, RestartRule, Start, Stop, plan
from rl_cluster.telemetry.summary import RunState, Summary

_TICK_S = 1.0
_SAVE_TIMEOUT_S = 4.0
_ANSWER_TIMEOUT_S = 20.0


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
        self._reports = {task: TaskReport(group) for task, group in self._groups.items()}
        self._stop_as: RunState | None = None
        self._wake = threading.Event()
        self._object_store_bytes = 0
        self._summary = self._compose("running")
        self._row_due_s = 0.0

    def run(self) -> Summary:
        """Supervise until the run is over; return its last summary, everything saved."""
        state: RunState | None = None
        while state is None:
            self._tick(time.monotonic())
            self._wake.wait(_TICK_S)
            self._wake.clear()
            state = self._stop_as or self._natural_end()
        self._save_all()
        self._report(state)
        self._hub.close()
        return self._summary

    def summary(self) -> Summary:
        """The newest summary."""
        return self._summary

    def stop(self) -> None:
        """Save everything and end the run as interrupted."""
        self._stop_as = "interrupted"
        self._wake.set()

    def pause(self, task: str | None) -> None:
        """Let a task's learner rest, or every one; rollouts stop by themselves."""
        for learner in self._chosen(task):
            read(learner.pause.remote(), _ANSWER_TIMEOUT_S)

    def resume(self, task: str | None) -> None:
        """Let paused learners go on."""
        for learner in self._chosen(task):
            read(learner.resume.remote(), _ANSWER_TIMEOUT_S)

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
        workers = {w.name: w for group in self._live_groups() for w in group.workers()}
        records = [worker.record() for worker in workers.values()]
        for action in plan(records, frozenset(), now_s, self._rule, self._rng):
            if isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Stop):
                workers[action.worker].empty()
            elif isinstance(action, Start):
                worker = workers[action.worker]
                self._groups[worker.task].start(worker)

    def _park(self, park: Park) -> None:
        report = self._reports[park.task]
        report.ended, report.failure = "failed", park.reason
        self._groups[park.task].stop()
        self._hub.incident(park.task, None, "task_parked", park.reason, "the other tasks go on")

    def _complete_tasks(self) -> None:
        limit = self._run.config.max_env_steps
        for task, report in self._reports.items():
            if limit is not None and report.ended is None and report.env_steps >= limit:
                self._save([task])
                report.ended = "completed"
                self._groups[task].stop()

    def _natural_end(self) -> RunState | None:
        ended = [report.ended for report in self._reports.values()]
        if all(state is not None for state in ended):
            return "failed" if all(state == "failed" for state in ended) else "completed"
        limit_s = self._run.config.max_seconds
        over = limit_s is not None and self._run.clock.session_s() >= limit_s
        return "completed" if over else None

    def _save_all(self) -> None:
        self._save([task for task, report in self._reports.items() if report.ended is None])

    def _save(self, tasks: list[str]) -> None:
        """Let learners save and leave their loops; one that cannot keeps its last checkpoint."""
        learners = [self._groups[task].learner for task in tasks]
        calls: list[tuple[Worker, Ref]] = [
            (w, w.actor.stop.remote()) for w in learners if w.actor is not None
        ]
        deadline_s = time.monotonic() + _SAVE_TIMEOUT_S
        for learner, ref in calls:
            try:
                learner.status = read(ref, max(0.1, deadline_s - time.monotonic()))
            except RayError as error:
                self._hub.incident(
                    learner.task, learner.name, "not_saved", cause_of(error), "last checkpoint kept"
                )
            self._reports[learner.task].refresh(time.monotonic())

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

    def _live_groups(self) -> list[TaskGroup]:
        return [g for task, g in self._groups.items() if self._reports[task].ended is None]

    def _chosen(self, task: str | None) -> list[Actor]:
        if task is not None and task not in self._groups:
            raise ValueError(f"no task {task!r} in this run: it has {', '.join(self._groups)}")
        groups = self._live_groups() if task is None else [self._groups[task]]
        return [g.learner.actor for g in groups if g.learner.actor is not None]

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
