"""What the supervisor does at each tick: look, decide, mend, report, and remember.

Invariant: decisions are made by `supervision` from records; this only gathers them and has them
performed. Whatever a later supervisor needs is on disk at the end of each tick.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from rl_cluster.cluster.crew import Crew, sayer
from rl_cluster.cluster.keeper_guard import KeeperGuard
from rl_cluster.cluster.messages import RunClock
from rl_cluster.cluster.node_guard import NodeGuard
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.run_plan import RunPlan
from rl_cluster.cluster.run_report import RunReport
from rl_cluster.cluster.seat import Seat
from rl_cluster.cluster.task_group import TaskGroup, TaskPlan
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.cluster.tracker_guard import TrackerGuard
from rl_cluster.config import TaskConfig
from rl_cluster.control import Control
from rl_cluster.effective import EffectiveFile
from rl_cluster.levers import apply_all
from rl_cluster.load_control import LoadControl
from rl_cluster.others_cpu import marked_with
from rl_cluster.preparation import at_load, is_live_change
from rl_cluster.run_directory import RunDirectory
from rl_cluster.supervision.admission import gpu_share
from rl_cluster.supervision.health import Deadlines, Watch
from rl_cluster.supervision.load import Load
from rl_cluster.supervision.plan import RestartRule
from rl_cluster.supervision.tiers import CUSTOM
from rl_cluster.supervision.wishes import Wishes
from rl_cluster.telemetry.summary import RunState, Summary, Tier

_log = logging.getLogger(__name__)
TICK_S = 1.0
_SAVE_TIMEOUT_S = 4.0
_CALM_SAVE_TIMEOUT_S = 60.0


class Oversight:
    """What a supervisor knows of one run, and does about it."""

    def __init__(self, run: RunPlan) -> None:
        self.plan, config = run, run.config
        self.control = Control(run.run_dir)
        self._seat, self._wishes_kept = Seat(self.control, "supervisor"), True
        self._effective_file = EffectiveFile(run.run_dir, run.effective)
        self._watch = Watch(longest_tick_s=2 * TICK_S)
        self.hub = TelemetryHub(run.name, run.run_dir, config)
        self._keeper = KeeperGuard(run.run_dir, self.control, self.hub)
        self._node = NodeGuard(self.control, self.hub)
        self._tracker = TrackerGuard(run.run_dir, self.control, self.hub, config.telemetry.wandb)
        self.wishes = self._known_wishes()
        run.take_in(self.wishes.added)  # Ray makes a supervisor again from its first arguments
        self._changed: dict[str, TaskConfig] = {}
        """What `requested` has worked out."""
        self._figures = RunReport(run.name, config.max_seconds, self.hub)
        self._row_due_s = 0.0
        self._hire()
        self.summary = self._compose("running")

    def _hire(self) -> None:
        """Make places for all workers; take those that are there already."""
        config, session = self.plan.config, self.control.read("session") or {}
        state = self.control.read("supervisor_state") or {}
        same_session = state.get("session") == session.get("id")
        same_cluster = same_session and state.get("cluster") == self._cluster_id
        self._session_s0 = float(session.get("wall_before_s", 0.0))
        self.clock = RunClock(float(state["wall_s"]) if same_session else self._session_s0)
        supervisor = config.supervisor
        deadlines = self._deadlines = Deadlines(
            supervisor.starting_timeout_s, supervisor.working_timeout_s, supervisor.saving_timeout_s
        )
        rule = RestartRule(
            supervisor.backoff_s,
            supervisor.max_restarts,
            supervisor.window_s,
            supervisor.max_backoff_s,
            supervisor.max_fruitless_restarts,
        )
        self.load = LoadControl(
            self.plan.run_dir,
            config.load,
            self._custom_load,
            self.plan.most_games,
            marked_with(self.plan.run_dir),
            self.wishes.tier,
            state.get("load") if same_session else None,
        )
        self._say_damage(self.load.damage)
        self.crew = Crew(rule, deadlines, config.seed, sayer(self.hub), config.cluster)
        self._take_tasks(state, same_session, same_cluster)

    def _take_tasks(self, state: dict[str, Any], same_session: bool, same_cluster: bool) -> None:
        """Make places for the tasks' workers, and go on from what an earlier supervisor knew."""
        tasks = self.plan.config.tasks
        summary = RunDirectory(self.plan.run_dir).earlier_summary()
        earlier = summary["tasks"] if summary else {}
        self.reports: dict[str, TaskReport] = {}
        for task in tasks:
            group = self.crew.groups[task] = self.group(task)
            self.reports[task] = TaskReport(group, earlier.get(task))
        if same_session:
            # Those that were leaving, too: nobody else would end their workers.
            self.crew.restore(state["workers"], 0.0, tasks if same_cluster else ())
            for task in state["ended"].keys() & self.reports.keys():
                if state["ended"][task][0] != "failed":
                    self.reports[task].end(*state["ended"][task])
        else:
            self.wishes.try_all_again()
            self._wishes_kept = False
        for task in self.wishes.parked.keys() & self.reports.keys():
            self.reports[task].end("failed", self.wishes.parked[task])

    def tick(self) -> bool:
        """Look once, and do what follows from it; whether the next look should come soon."""
        now_s = self._watch.look(time.monotonic())
        self._seat.hold()
        self.crew.look(now_s)
        for report in self.reports.values():  # before anybody is parked with these as the last
            report.refresh(now_s)
        self._adjust_load(now_s)
        self._mend(now_s)
        self._complete_tasks()
        self._write_effective()
        self._keeper.look(now_s)
        self._tracker.look(self.plan.tracker_ids, now_s)
        self.summary = self._compose("running")
        self.hub.summary(self.summary)
        if now_s >= self._row_due_s:
            self._row_due_s = now_s + self.plan.config.telemetry.period_s
            self._figures.write_rows(self.reports, self.clock.wall_s())
            if self.plan.has_own_cluster:
                self._node.look(self._figures.object_store_bytes is not None, now_s)
        self._keep_state(now_s)
        self.control.beat("supervisor")
        return self.crew.is_changing(now_s)

    def _adjust_load(self, now_s: float) -> None:
        store, capacity = self._figures.object_store_bytes, self.plan.object_store_bytes
        share = None if store is None else store / capacity
        games = self.load.state.load.games
        at_work = {task for task, group in self.crew.groups.items() if group.is_at_work}
        reason = self.load.tick(now_s, self._able(), at_work, self._custom_load, share)
        if reason is None:
            return
        self.hub.incident(None, None, "load_changed", reason, "tasks are re-made where needed")
        fewer = self.load.state.load.games < games
        if self.load.memory_is_short and fewer and self.plan.has_own_cluster:
            # The object store never gives memory back to the host: only a new one is smaller.
            self.recycle()

    def recycle(self) -> None:
        """Have the run's own cluster made anew."""
        self._save(self.live_tasks(), _CALM_SAVE_TIMEOUT_S)
        self._keep_state(self._watch.look(time.monotonic()))
        self.hub.summary(self._compose("running"))  # what the next supervisor begins with
        self.control.request("recycled")

    def _able(self) -> dict[str, int]:
        """Tasks that could train; one that rests gives its place to one that waits."""
        config = self.plan.config
        live = [t for t in self.live_tasks() if t not in self.wishes.removed]
        crowded = len(live) > self.load.state.load.games
        resting = self.wishes.paused if crowded else set()
        return {t: config.tasks[t].priority for t in live if t not in resting}

    def _mend(self, now_s: float) -> None:
        self._seat.hold()  # it may have been frozen since the tick began
        tasks = self.load.active - self.wishes.removed - self.wishes.parked.keys()
        parks, gifts = self.crew.mend(
            frozenset(filter(self._fits, self._with_room(tasks))),
            frozenset(self.wishes.given_up),
            now_s,
            self.clock.wall_s(),
        )
        for park in parks:
            self.wishes.parked[park.task] = park.reason
            self.reports[park.task].end("failed", park.reason)
            self.hub.incident(park.task, None, "task_parked", park.reason, "the others go on")
        self.wishes.given_up |= {gift.worker for gift in gifts}
        if parks or gifts or not self._wishes_kept:
            self._wishes_kept = self.control.has_written("wishes", self.wishes.to_record())
        self._apply_pauses()

    def _with_room(self, tasks: frozenset[str]) -> frozenset[str]:
        """Those that have workers, and of the others as many as the load has room for.

        Who leaves keeps its room, and its memory, until it has saved, and comes back only then.
        """
        filled = {task for task, group in self.crew.groups.items() if not group.is_empty}
        leaving = {task for task in filled if self.crew.groups[task].is_leaving}
        room = max(0, self.load.state.load.games - len(filled))
        return frozenset([*(tasks & filled - leaving), *sorted(tasks - filled)[:room]])

    def _fits(self, task: str) -> bool:
        """Give a task's places the settings of the present load and levers.

        Returns:
          Whether its workers have them, or can take them live; else they are retired first.
        """
        group = self.crew.groups[task]
        # A fleet's courier does more than evaluate.
        group.evaluates = group.config.is_fleet or not self.load.state.shed
        wanted = at_load(self.requested(task), self.load.state)
        if wanted != group.config:
            if group.is_empty:
                group.config = wanted
            elif is_live_change(group.config, wanted):
                group.change(wanted)
            else:
                return False
        return True

    def requested(self, task: str) -> TaskConfig:
        """A task's settings, with those that people changed live."""
        if task not in self._changed:
            changes = self.wishes.changes.get(task, {})
            self._changed[task] = apply_all(self.plan.config.tasks[task], changes)
        return self._changed[task]

    def change(self, task: str | None, settings: dict[str, Any]) -> None:
        """Change live settings of a task, or of all: every one of them, or none.

        Raises:
          ValueError: there is no such task, setting or value, or the tier decides.
        """
        if "learner.batch" in settings and self.wishes.tier != CUSTOM:
            raise ValueError(
                f"the tier ({self.wishes.tier}) has a batch of its own: ask for tier custom first, "
                "or for a tier with the batch that you want"
            )
        changed = {name: apply_all(self.requested(name), settings) for name in self.chosen(task)}
        for name in changed:
            self.wishes.changes.setdefault(name, {}).update(settings)
        self._changed |= changed
        if "learner.batch" in settings:
            self.load.request(CUSTOM)

    def forget_changes(self, task: str) -> None:
        """A task begins anew, with the settings that it comes with."""
        self.wishes.changes.pop(task, None)
        self._changed.pop(task, None)

    def _write_effective(self) -> None:
        load = self.load.state
        running = {t: at_load(self.requested(t), load) for t in self.plan.config.tasks}
        self._effective_file.write(running, f"tier {load.requested}: {load.load}; or changed live")

    def _apply_pauses(self) -> None:
        """Pausing is desired state: a learner that was replaced meanwhile rests, too."""
        for task in self.live_tasks():
            group = self.crew.groups[task]
            status, actor = group.learner_status, group.learner.actor
            wanted = task in self.wishes.paused
            if status is not None and actor is not None and status.paused != wanted:
                (actor.pause if wanted else actor.resume).remote()

    def _complete_tasks(self) -> None:
        limit = self.plan.config.max_env_steps
        for task in self.live_tasks():
            if limit is not None and self.reports[task].env_steps >= limit:
                self._save([task], _CALM_SAVE_TIMEOUT_S)
                self.reports[task].end("completed")
                self.crew.groups[task].stop()

    def natural_end(self) -> RunState | None:
        """How the run has ended by itself; None while it goes on."""
        here = [r.ended for t, r in self.reports.items() if t not in self.wishes.removed]
        if here and all(state is not None for state in here):
            return "failed" if all(state == "failed" for state in here) else "completed"
        limit_s = self.plan.config.max_seconds
        over = limit_s is not None and self.clock.wall_s() - self._session_s0 >= limit_s
        return "completed" if over else None

    def finish(self, state: RunState, reason: str | None) -> None:
        """Save everything, say how the run ended, and end its workers."""
        hurried = state == "interrupted"
        self._save(self.live_tasks(), _SAVE_TIMEOUT_S if hurried else _CALM_SAVE_TIMEOUT_S)
        self._figures.write_rows(self.reports, self.clock.wall_s())
        self.summary = self._compose(state)
        self.hub.summary(self.summary)
        self.hub.close()
        self._tracker.finish(hurried)
        self.load.end()
        while not self.control.has_written("end", {"state": state, "reason": reason}):
            self.control.beat("supervisor")
            time.sleep(TICK_S)
        for group in self.crew.groups.values():
            group.stop()

    def _save(self, tasks: list[str], timeout_s: float) -> None:
        self.crew.save(tasks, timeout_s, lambda: self.control.beat("supervisor"))
        for task in tasks:
            self.reports[task].refresh(self._watch.look(time.monotonic()))

    def live_tasks(self) -> list[str]:
        """Tasks that have not ended, at work or waiting for their slice."""
        return [
            task
            for task, report in self.reports.items()
            if report.ended is None and task not in self.wishes.removed
        ]

    def known(self, task: str) -> str:
        """A task's own name; ValueError names the tasks where there is no such."""
        if task not in self.reports or task in self.wishes.removed:
            known = [t for t in self.reports if t not in self.wishes.removed]
            raise ValueError(f"no task {task!r} in this run: {', '.join(known)}")
        return task

    def chosen(self, task: str | None) -> list[str]:
        """One task that has not ended, or all; ValueError where it has, or there is no such."""
        live = self.live_tasks()
        if task is None:
            return live
        if task not in live:
            raise ValueError(
                f"no task {task!r} is at work in this run: {', '.join(live) or 'none'}"
            )
        return [task]

    def group(self, task: str) -> TaskGroup:
        """Places for the workers of a task, empty."""
        run = self.plan
        task_plan = TaskPlan(
            task,
            run.run_dir,
            run.config.seed,
            run.specs[task],
            run.tracker_ids[task],
            gpu_share(len(run.config.tasks), len(run.machine.gpus)),
            self._deadlines,
            self.crew.places,
        )
        config = at_load(self.requested(task), self.load.state)
        return TaskGroup(task_plan, config, self.crew.weights)

    @property
    def _custom_load(self) -> Load:
        """What the tasks configure, all at once."""
        tasks = [self.requested(task) for task in self.plan.config.tasks]
        return Load(
            len(tasks),
            max(t.rollout.actors * t.rollout.environments for t in tasks),
            max(t.learner.batch for t in tasks),
        )

    def keep_wish(self, kind: str, task: str | None, cause: str) -> None:
        """Write down what a person asked for, and that it was asked."""
        self.hub.incident(task, None, kind, cause, "done between two steps")
        self.control.keep("wishes", self.wishes.to_record())

    def _compose(self, state: RunState) -> Summary:
        tier: Tier = {"requested": self.load.state.requested, "effective": self.load.effective}
        shown = {t: r for t, r in self.reports.items() if t not in self.wishes.removed}
        return self._figures.compose(state, shown, self.clock.wall_s(), tier)

    @property
    def _cluster_id(self) -> str:
        return str(ray.get_runtime_context().gcs_address)

    def _known_wishes(self) -> Wishes:
        try:
            if (record := self.control.read("wishes")) is not None:
                return Wishes.from_record(record)
        except ValueError as error:
            _log.error("wishes.json: %s", error)
        self._say_damage(self.control.put_aside("wishes"))
        return Wishes(self.plan.config.load.tier)

    def _say_damage(self, damage: str | None) -> None:
        if damage is not None:
            self.hub.incident(None, None, "file_damaged", damage, "the run goes on without it")

    def _keep_state(self, now_s: float) -> None:
        session = self.control.read("session") or {}
        ended = {t: (r.ended, r.failure) for t, r in self.reports.items() if r.ended}
        self.control.has_written(
            "supervisor_state",
            {
                "session": session.get("id"),
                "cluster": self._cluster_id,
                "wall_s": self.clock.wall_s(),
                "workers": self.crew.states(now_s),
                "load": self.load.record,
                "ended": ended,
            },
        )
