"""The supervisor: compares what should run with what runs, and mends the difference.

Detached, and brought back by Ray whenever it dies; workers do not notice, since all that it knows
is on disk or told by the workers themselves. Invariant: decisions are made by `supervision` from
records; this shell only looks, performs and reports. It takes no part in the flow of data, so its
pace changes nothing in training.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from rl_cluster.cluster import host
from rl_cluster.cluster.actors import Ref, cause_of, read
from rl_cluster.cluster.crew import Crew, sayer
from rl_cluster.cluster.keeper import launch
from rl_cluster.cluster.messages import RunClock, StopReport
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.task_group import TaskGroup, TaskPlan
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.cluster.worker import Worker
from rl_cluster.config import RunConfig, TaskConfig
from rl_cluster.control import Control, ProcessId, PulseReader
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.levers import apply
from rl_cluster.load_control import LoadControl
from rl_cluster.machine import Machine
from rl_cluster.others_cpu import marked_with
from rl_cluster.preparation import at_load, is_live_change
from rl_cluster.supervision.health import Deadlines, Watch
from rl_cluster.supervision.load import Load
from rl_cluster.supervision.plan import RestartRule
from rl_cluster.supervision.wishes import Wishes
from rl_cluster.telemetry.summary import RunState, Summary, SummaryError, TaskSummary, read_summary

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_LOOK_S = 0.2
_SAVE_TIMEOUT_S = 4.0
_CALM_SAVE_TIMEOUT_S = 60.0
_KEEPER_SILENT_S = 15.0


@dataclass(frozen=True)
class RunPlan:
    """What a run is made from."""

    name: str
    run_dir: Path
    config: RunConfig
    """Effective configuration, tasks that were added live included."""
    specs: dict[str, EnvironmentSpec]
    tracker_ids: dict[str, str]
    machine: Machine
    most_games: int
    """Tasks that fit the machine's memory at once."""
    object_store_bytes: int


class SupervisorActor:
    """Supervisor of one run."""

    def __init__(self, run: RunPlan) -> None:
        self._run, config = run, run.config
        self._control = Control(run.run_dir)
        self._signed, self._wishes_kept = False, True
        self._watch = Watch(longest_tick_s=2 * _TICK_S)
        self._keeper, self._heir_is_due = PulseReader(self._control, "keeper", 0.0), False
        self._hub = TelemetryHub(run.name, run.run_dir, config, run.tracker_ids)
        self._wishes = self._known_wishes()
        self._lock = threading.Lock()
        self._object_store_bytes: int | None = None
        self._row_due_s = 0.0
        self._hire()
        self._summary = self._compose("running")
        threading.Thread(target=self._run_for_ever, name="supervise", daemon=True).start()

    def _hire(self) -> None:
        """Make places for all workers; take those that are there already."""
        config, session = self._run.config, self._control.read("session") or {}
        state = self._control.read("supervisor_state") or {}
        same_session = state.get("session") == session.get("id")
        same_cluster = same_session and state.get("cluster") == self._cluster_id
        self._session_s0 = float(session.get("wall_before_s", 0.0))
        self._clock = RunClock(float(state["wall_s"]) if same_session else self._session_s0)
        supervisor = config.supervisor
        deadlines = Deadlines(
            supervisor.starting_timeout_s, supervisor.working_timeout_s, supervisor.saving_timeout_s
        )
        rule = RestartRule(
            supervisor.backoff_s,
            supervisor.max_restarts,
            supervisor.window_s,
            supervisor.max_backoff_s,
            supervisor.max_fruitless_restarts,
        )
        self._deadlines = deadlines
        self._load = LoadControl(
            self._run.run_dir,
            config.load,
            self._custom_load,
            self._run.most_games,
            marked_with(self._run.run_dir),
            self._wishes.tier,
            state.get("load") if same_session else None,
        )
        self._crew = Crew(rule, deadlines, config.seed, sayer(self._hub))
        earlier = self._earlier_tasks()
        self._reports: dict[str, TaskReport] = {}
        for task in config.tasks:
            group = self._crew.groups[task] = self._group(task)
            self._reports[task] = TaskReport(group, earlier.get(task))
        if same_session:
            active = self._load.active if same_cluster else ()
            self._crew.restore(state["workers"], 0.0, active)
            for task, ended in state["ended"].items():
                self._reports[task].end(*ended)

    def _earlier_tasks(self) -> dict[str, TaskSummary]:
        try:
            return read_summary(self._run.run_dir)["tasks"]
        except (FileNotFoundError, SummaryError):
            return {}

    def health(self) -> bool:
        """Answer, to show that it was made."""
        return True

    def summary(self) -> Summary:
        """The newest summary."""
        return self._summary

    def tier(self, name: str) -> None:
        """Ask for another tier from the next tick on."""
        with self._lock:
            self._load.request(name)
            self._wish("tier_requested", None, f"a person asked for {name}")
            self._wishes.tier = name
            self._keep_wishes()

    def pause(self, task: str | None) -> None:
        """Let a task rest, or every one, until `resume`; rollouts stop by themselves."""
        with self._lock:
            self._wishes.paused |= set(self._chosen(task))
            self._wish("paused", task, "a person asked for it")
            self._keep_wishes()

    def resume(self, task: str | None) -> None:
        """Let paused tasks go on, and try those again that were parked."""
        with self._lock:
            for name in self._reports if task is None else [self._known(task)]:
                self._wishes.paused.discard(name)
                self._wishes.try_again(name)
                if self._reports[name].ended == "failed":
                    self._reports[name].begin_again()
                    for worker in self._crew.groups[name].workers():
                        worker.forgive()
            self._wish("resumed", task, "a person asked for it")
            self._keep_wishes()

    def change(self, task: str | None, setting: str, value: Any) -> None:
        """Change a live setting of a task, or of all, from their next step on."""
        with self._lock:
            names = list(self._chosen(task))
            for name in names:
                apply(self._requested(name), setting, value)  # refused before any is kept
            for name in names:
                self._wishes.changes.setdefault(name, {})[setting] = value
            self._wish("setting_changed", task, f"a person set {setting} to {value!r}")
            self._keep_wishes()

    def remove(self, task: str) -> None:
        """Let a task save and leave the run; its files stay."""
        with self._lock:
            self._known(task)
            self._wishes.removed.add(task)
            self._wish("task_removed", task, "a person asked for it")
            self._keep_wishes()

    def add(self, task: str, config: TaskConfig, settings: dict[str, Any],
            spec: EnvironmentSpec, tracker_id: str) -> None:  # fmt: skip
        """Take in a task that was prepared by the caller; it trains when the tier has room."""
        with self._lock:
            if task in self._reports and task not in self._wishes.removed:
                raise ValueError(f"{task} is a task of this run already")
            self._run.config.tasks[task] = config
            self._run.specs[task], self._run.tracker_ids[task] = spec, tracker_id
            group = self._crew.groups[task] = self._group(task)
            self._reports[task] = TaskReport(group, None)
            self._wishes.removed.discard(task)
            self._wishes.added[task] = settings
            self._load.request(self._wishes.tier)
            self._wish("task_added", task, "a person asked for it")
            self._keep_wishes()

    def checkpoint(self, task: str | None) -> dict[str, str | None]:
        """Save a task now, or every one that is at work; task to its checkpoint's path."""
        actors = {t: self._crew.groups[t].learner.actor for t in self._chosen(task)}
        calls: dict[str, Ref] = {
            t: actor.checkpoint.remote() for t, actor in actors.items() if actor is not None
        }
        return {t: read(ref, _CALM_SAVE_TIMEOUT_S) for t, ref in calls.items()}

    def _run_for_ever(self) -> None:
        try:
            state, reason = self._supervise()
            self._finish(state, reason)
        except Exception:  # noqa: BLE001 - process boundary: Ray makes another, which goes on from the disk
            _log.exception("the supervisor failed")
            os._exit(1)

    def _supervise(self) -> tuple[RunState, str | None]:
        due_s = 0.0
        while True:
            if self._control.requested("stop"):
                return "interrupted", None
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + _TICK_S
                with self._lock:
                    self._tick()
                    if (state := self._natural_end()) is not None:
                        return state, None
            time.sleep(_LOOK_S)

    def _tick(self) -> None:
        now_s = self._watch.look(time.monotonic())
        self._signed = self._signed or self._has_written(
            "supervisor", asdict(ProcessId.of(os.getpid()))
        )
        self._crew.look(now_s)
        self._adjust_load(now_s)
        self._mend(now_s)
        for report in self._reports.values():
            report.refresh(now_s)
        self._complete_tasks()
        self._guard_keeper(now_s)
        self._summary = self._compose("running")
        self._hub.summary(self._summary)
        if now_s >= self._row_due_s:
            self._row_due_s = now_s + self._run.config.telemetry.period_s
            self._write_rows()
        self._keep_state(now_s)
        self._control.beat("supervisor")

    def _adjust_load(self, now_s: float) -> None:
        store, capacity = self._object_store_bytes, self._run.object_store_bytes
        share = None if store is None else store / capacity
        games = self._load.state.load.games
        at_work = {task for task, group in self._crew.groups.items() if group.is_at_work}
        reason = self._load.tick(now_s, self._able(), at_work, self._custom_load, share)
        if reason is None:
            return
        self._hub.incident(None, None, "load_changed", reason, "tasks are re-made where needed")
        if self._load.memory_is_short and self._load.state.load.games < games:
            # The object store never gives memory back to the host: only a new one is smaller.
            self._save(self._live_tasks(), _CALM_SAVE_TIMEOUT_S)
            self._keep_state(now_s)
            self._control.request("recycled")

    def _able(self) -> dict[str, int]:
        """Tasks that could train; one that rests gives its place to one that waits."""
        config = self._run.config
        live = [t for t in self._live_tasks() if t not in self._wishes.removed]
        crowded = len(live) > self._load.state.load.games
        resting = self._wishes.paused if crowded else set()
        return {t: config.tasks[t].priority for t in live if t not in resting}

    def _mend(self, now_s: float) -> None:
        tasks = self._load.active - self._wishes.removed - self._wishes.parked.keys()
        parks, gifts = self._crew.mend(
            frozenset(filter(self._fits, tasks)),
            frozenset(self._wishes.given_up),
            now_s,
            self._clock.wall_s(),
        )
        for park in parks:
            self._wishes.parked[park.task] = park.reason
            self._reports[park.task].end("failed", park.reason)
            self._hub.incident(park.task, None, "task_parked", park.reason, "the others go on")
        self._wishes.given_up |= {gift.worker for gift in gifts}
        if parks or gifts or not self._wishes_kept:
            self._wishes_kept = self._has_written("wishes", self._wishes.to_record())
        self._apply_pauses()

    def _fits(self, task: str) -> bool:
        """Give a task's places the settings of the present load and levers.

        Returns:
          Whether its workers have them, or can take them live; else they are retired first.
        """
        group = self._crew.groups[task]
        group.evaluates = not self._load.state.shed
        wanted = at_load(self._requested(task), self._load.state)
        if wanted != group.config:
            if group.is_empty:
                group.config = wanted
            elif is_live_change(group.config, wanted):
                group.change(wanted)
            else:
                return False
        return True

    def _requested(self, task: str) -> TaskConfig:
        """A task's settings, with those that people changed live."""
        config = self._run.config.tasks[task]
        for setting, value in self._wishes.changes.get(task, {}).items():
            config = apply(config, setting, value)
        return config

    def _apply_pauses(self) -> None:
        """Pausing is desired state: a learner that was replaced meanwhile rests, too."""
        for task in self._live_tasks():
            group = self._crew.groups[task]
            status, actor = group.learner_status, group.learner.actor
            wanted = task in self._wishes.paused
            if status is not None and actor is not None and status.paused != wanted:
                (actor.pause if wanted else actor.resume).remote()

    def _complete_tasks(self) -> None:
        limit = self._run.config.max_env_steps
        for task in self._live_tasks():
            if limit is not None and self._reports[task].env_steps >= limit:
                self._save([task], _CALM_SAVE_TIMEOUT_S)
                self._reports[task].end("completed")
                self._crew.groups[task].stop()

    def _natural_end(self) -> RunState | None:
        here = [r.ended for t, r in self._reports.items() if t not in self._wishes.removed]
        if here and all(state is not None for state in here):
            return "failed" if all(state == "failed" for state in here) else "completed"
        limit_s = self._run.config.max_seconds
        over = limit_s is not None and self._clock.wall_s() - self._session_s0 >= limit_s
        return "completed" if over else None

    def _finish(self, state: RunState, reason: str | None) -> None:
        hurried = state == "interrupted"
        self._save(self._live_tasks(), _SAVE_TIMEOUT_S if hurried else _CALM_SAVE_TIMEOUT_S)
        self._write_rows()
        self._summary = self._compose(state)
        self._hub.summary(self._summary)
        self._hub.close()
        self._load.end()
        while not self._has_written("end", {"state": state, "reason": reason}):
            self._control.beat("supervisor")
            time.sleep(_TICK_S)
        for group in self._crew.groups.values():
            group.stop()

    def _has_written(self, name: str, content: dict[str, Any]) -> bool:
        """Whether a control file could be replaced; a full disk is named, and stops nothing."""
        try:
            self._control.write(name, content)
        except OSError as error:
            _log.error("%s not written: %s", name, error)
            return False
        return True

    def _save(self, tasks: list[str], timeout_s: float) -> None:
        """Let learners save and leave their loops; one that cannot keeps its last checkpoint."""
        calls = {task: self._crew.groups[task].save() for task in tasks}
        deadline_s = time.monotonic() + timeout_s
        for task, refs in calls.items():
            learner = self._crew.groups[task].learner
            for i, ref in enumerate(refs):
                try:
                    answer = read(ref, max(0.1, deadline_s - time.monotonic()))
                except RayError as error:
                    self._say_not_saved(learner if i == 0 else self._crew.groups[task].replay,
                                        cause_of(error))  # fmt: skip
                else:
                    if i == 0:
                        self._take_last_report(learner, answer)

    def _take_last_report(self, learner: Worker, report: StopReport) -> None:
        learner.status = report.status
        self._reports[learner.task].refresh(self._watch.look(time.monotonic()))
        for notice in report.status.notices:
            self._hub.incident(learner.task, learner.name, **notice)
        if not report.saved:
            self._say_not_saved(learner, "its checkpoint could not be written")

    def _say_not_saved(self, worker: Worker, cause: str) -> None:
        action = "what it saved last stands"
        self._hub.incident(worker.task, worker.name, "not_saved", cause, action)

    def _guard_keeper(self, now_s: float) -> None:
        """Replace a keeper that died or hangs, as it would replace this actor."""
        process = self._control.signed("keeper")
        if process is None:  # no keeper was asked for
            return
        alive, silence_s = process.alive, self._keeper.silence_s(now_s)
        if silence_s < (_KEEPER_SILENT_S if alive or self._heir_is_due else _TICK_S):
            self._heir_is_due = self._heir_is_due and not alive
            return
        cause = "it does not get on: hung" if alive else "it died"
        self._hub.incident(None, "keeper", "worker_failed", cause, "another is started")
        if alive:
            os.kill(process.pid, signal.SIGKILL)
        launch(self._run.run_dir)
        self._heir_is_due = True
        self._keeper.reset(now_s)

    def _write_rows(self) -> None:
        wall_s = self._clock.wall_s()
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
        load = self._load.state
        return {
            "run": self._run.name,
            "state": state,
            "updated_at": time.time(),
            "wall_s": self._clock.wall_s(),
            "max_seconds": self._run.config.max_seconds,
            "tier": {"requested": load.requested, "effective": self._load.effective},
            "incidents": self._hub.incidents,
            "object_store_bytes": self._object_store_bytes,
            "tasks": {
                task: report.summary()
                for task, report in self._reports.items()
                if task not in self._wishes.removed
            },
        }

    def _live_tasks(self) -> list[str]:
        """Tasks that have not ended, at work or waiting for their slice."""
        return [
            task
            for task, report in self._reports.items()
            if report.ended is None and task not in self._wishes.removed
        ]

    def _known(self, task: str) -> str:
        if task not in self._reports or task in self._wishes.removed:
            known = [t for t in self._reports if t not in self._wishes.removed]
            raise ValueError(f"no task {task!r} in this run: {', '.join(known)}")
        return task

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
        gpus = len(run.machine.gpus)
        task_plan = TaskPlan(
            task,
            run.run_dir,
            run.config.seed,
            run.specs[task],
            run.tracker_ids[task],
            min(1.0, gpus / len(run.config.tasks)) if gpus else 0.0,
            self._deadlines,
        )
        config = at_load(self._requested(task), self._load.state)
        return TaskGroup(task_plan, config, self._crew.weights)

    @property
    def _custom_load(self) -> Load:
        """What the tasks configure, all at once."""
        tasks = self._run.config.tasks.values()
        return Load(
            len(tasks),
            max(t.rollout.actors * t.rollout.environments for t in tasks),
            max(t.learner.batch for t in tasks),
        )

    @property
    def _cluster_id(self) -> str:
        return str(ray.get_runtime_context().gcs_address)

    def _known_wishes(self) -> Wishes:
        record = self._control.read("wishes")
        return Wishes(self._run.config.load.tier) if record is None else Wishes.from_record(record)

    def _keep_wishes(self) -> None:
        self._control.write("wishes", self._wishes.to_record())

    def _keep_state(self, now_s: float) -> None:
        session = self._control.read("session") or {}
        ended = {t: (r.ended, r.failure) for t, r in self._reports.items() if r.ended}
        self._has_written(
            "supervisor_state",
            {
                "session": session.get("id"),
                "cluster": self._cluster_id,
                "wall_s": self._clock.wall_s(),
                "workers": self._crew.states(now_s),
                "load": self._load.record,
                "ended": ended,
            },
        )

    def _wish(self, kind: str, task: str | None, cause: str) -> None:
        self._hub.incident(task, None, kind, cause, "done between two steps")
