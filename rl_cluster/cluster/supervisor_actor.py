"""Shell of the supervisor: its loop, and the levers that people pull.

Detached, and brought back by Ray whenever it dies; workers do not notice, since all that it knows
is on disk or told by the workers themselves. Invariant: a lever is validated and written down
before its call returns, and takes effect at the next tick. The supervisor takes no part in the flow
of data, so its pace changes nothing in training.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from ray.exceptions import RayError
from ray.util import list_named_actors

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Ref, cause_of, end_named, read
from rl_cluster.cluster.oversight import TICK_S, Oversight
from rl_cluster.cluster.reporting import TaskReport
from rl_cluster.cluster.run_plan import RunPlan
from rl_cluster.cluster.shared_store import claim
from rl_cluster.cluster.vitals import once_made
from rl_cluster.preparation import AddedTask
from rl_cluster.promised_store import promise, promised_bytes
from rl_cluster.supervision.tiers import CUSTOM
from rl_cluster.telemetry.summary import RunState, Summary

_log = logging.getLogger(__name__)
_LOOK_S = 0.2
_DISMISSED_S = 30.0
"""A keeper's time to dismiss us."""
_SAVE_TIMEOUT_S = 50.0  # a handle waits for a minute


class SupervisorActor:
    """Supervisor of one run."""

    def __init__(self, run: RunPlan) -> None:
        self._run, self._lock, self._adding = Oversight(run), threading.Lock(), threading.Lock()
        threading.Thread(target=self._run_for_ever, name="supervise", daemon=True).start()

    @once_made
    def __repr__(self) -> str:
        """Name, state, each task's policy, and the speed of all together."""
        summary = self.summary()
        tasks = [f"{task} {it['policy_version']}" for task, it in summary["tasks"].items()]
        speed = sum(it["env_frames_per_s"] for it in summary["tasks"].values())
        said = ", ".join([summary["state"], *tasks, f"{speed:.0f} env frames/s"])
        return f"<{names.SUPERVISOR}: {said}; {summary['wall_s']:.0f} s of work>"

    def health(self) -> bool:
        """Answer, to show that it was made."""
        return True

    def summary(self) -> Summary:
        """The newest summary."""
        return self._run.summary

    def tier(self, name: str) -> None:
        """Ask for another tier from the next tick on."""
        with self._lock:
            self._run.load.request(name)
            self._run.wishes.tier = name
            self._run.keep_wish("tier_requested", None, f"a person asked for {name}")

    def pause(self, task: str | None) -> None:
        """Let a task rest, or every one, until `resume`; rollouts stop by themselves."""
        with self._lock:
            self._run.wishes.paused |= set(self._run.chosen(task))
            self._run.keep_wish("paused", task, "a person asked for it")

    def resume(self, task: str | None) -> None:
        """Let paused tasks go on, and try those again that were parked."""
        with self._lock:
            for name in self._run.reports if task is None else [self._run.known(task)]:
                self._run.wishes.paused.discard(name)
                self._run.wishes.try_again(name)
                if self._run.reports[name].ended == "failed":
                    self._run.reports[name].begin_again()
                for worker in self._run.crew.groups[name].workers():  # given up, or nearly
                    worker.forgive()
            self._run.keep_wish("resumed", task, "a person asked for it")

    def change(self, task: str | None, settings: dict[str, Any]) -> None:
        """Change live settings of a task, or of all, from their next step on: all or none."""
        with self._lock:
            self._run.change(task, settings)
            said = ", ".join(f"{setting} to {value!r}" for setting, value in settings.items())
            self._run.keep_wish("setting_changed", task, f"a person set {said}")

    def remove(self, task: str) -> None:
        """Let a task save and leave the run; its files stay."""
        with self._lock:
            self._run.known(task)
            self._run.wishes.removed.add(task)
            self._run.keep_wish("task_removed", task, "a person asked for it")

    def add(self, task: str, added: AddedTask) -> None:
        """Take in a task that was prepared by the caller; it trains when the tier has room.

        Where the tier has a place for it, or tasks share GPUs, the run's own cluster is made anew
        with room, and shares, for one more; one of others needs to have the room.

        Raises:
          ValueError: there is such a task, or it still leaves.
          AdmissionError: others' cluster has no room for it.
        """
        with self._adding:  # so that two do not claim the same room
            with self._lock:
                self._check_addable(task)
                wants_room = self._run.wishes.tier == CUSTOM or self._run.load.wants_more_games
            # The cluster is asked without the lock: it may be slow, and ticks must go on.
            if wants_room and not self._run.plan.has_own_cluster:
                claim(promised_bytes(self._run.control) + added.store_bytes)
            with self._lock:
                self._take_in(task, added, wants_room)

    def _check_addable(self, task: str) -> None:
        if task not in self._run.reports:
            return
        if task not in self._run.wishes.removed:
            raise ValueError(f"{task} is a task of this run already")
        if not self._run.crew.groups[task].is_empty:
            raise ValueError(f"{task} still saves and leaves: try again in a few seconds")

    def _take_in(self, task: str, added: AddedTask, wants_room: bool) -> None:
        run, plan = self._run, self._run.plan
        plan.config.tasks[task] = added.config
        run.forget_changes(task)
        plan.specs[task] = added.spec
        plan.tracker_ids[task] = added.tracker_id
        group = run.crew.groups[task] = run.group(task)
        before = run.reports.get(task)  # its files are still there, and it goes on with them
        run.reports[task] = TaskReport(group, before.summary() if before else None)
        run.wishes.removed.discard(task)
        run.wishes.added[task] = added.settings
        run.wishes.try_again(task)
        run.load.request(run.wishes.tier)
        run.keep_wish("task_added", task, "a person asked for it")
        if wants_room:
            promise(run.control, added.store_bytes)
        if plan.has_own_cluster and (wants_room or plan.machine.gpus):
            run.recycle()

    def rollback(self, task: str, version: int | None) -> int:
        """Send a fleet's rovers an earlier policy, as the new version that is returned."""
        (name,) = self._run.chosen(task)
        group = self._run.crew.groups[name]
        if not group.config.is_fleet:
            raise ValueError(f"{task} is a game: policies are sent to rovers only")
        if group.evaluator.actor is None:
            raise ValueError(f"the courier of {task} is being replaced: try again in a few seconds")
        sent: int = read(group.evaluator.actor.rollback.remote(version), _SAVE_TIMEOUT_S)
        with self._lock:
            which = "the policy before" if version is None else f"policy {version}"
            self._run.keep_wish("policy_rolled_back", task, f"a person asked for {which}: {sent}")
        return sent

    def checkpoint(self, task: str | None) -> dict[str, str | None]:
        """Save a task now, or every one; task to its checkpoint's path, None where it failed."""
        deadline_s = time.monotonic() + _SAVE_TIMEOUT_S
        actors = {t: self._run.crew.groups[t].learner.actor for t in self._run.chosen(task)}
        calls = {t: None if a is None else a.checkpoint.remote() for t, a in actors.items()}
        return {t: _path(ref, deadline_s - time.monotonic()) for t, ref in calls.items()}

    def _run_for_ever(self) -> None:
        try:
            end = self._supervise()
            if end is not None:
                self._run.finish(*end)
                while not self._is_over:
                    time.sleep(_LOOK_S)
                time.sleep(_DISMISSED_S)
            _log.warning("the run is over, and nobody has dismissed its actors: they leave")
            # Itself last: nobody else is left to end the others.
            end_named(sorted(list_named_actors(), key=lambda name: name == names.SUPERVISOR))
        except Exception:  # noqa: BLE001 - process boundary: Ray makes another from what is on disk
            _log.exception("the supervisor failed")
            os._exit(1)

    @property
    def _is_over(self) -> bool:
        """Whether the run has ended, or goes on in a session that another supervisor is for.

        A keeper ends a run though its cluster does not answer, and that one, with us, comes back.
        """
        control = self._run.control
        session = control.read("session")
        return control.is_over or (
            session is not None and session.get("id") != self._run.plan.session
        )

    def _supervise(self) -> tuple[RunState, str | None] | None:
        """Look after the run until its end; None: it came without us."""
        due_s = 0.0
        while True:
            if self._is_over:
                return None
            if self._run.control.requested("stop"):
                return "interrupted", None
            if time.monotonic() >= due_s:
                with self._lock:
                    is_changing = self._run.tick()
                    due_s = time.monotonic() + (0.0 if is_changing else TICK_S)
                    if (state := self._run.natural_end()) is not None:
                        return state, None
            time.sleep(_LOOK_S)


def _path(ref: Ref | None, timeout_s: float) -> str | None:
    """Where a learner's checkpoint is; None where there is none, or it has not saved in time."""
    if ref is None:
        return None
    try:
        path: str | None = read(ref, max(0.0, timeout_s))
    except RayError as error:
        _log.warning("no checkpoint: %s", cause_of(error))
        return None
    return path
