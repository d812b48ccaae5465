"""One supervised place as the supervisor sees it: who fills it, how it is, how it failed.

Invariant: looking never blocks. Whoever counts as failed is dead before its place is filled anew:
its process is killed directly where that is on this host, since Ray takes seconds over a frozen
one; and each life has an epoch that grows over restarts of everything, which stores check.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any, TypedDict

import ray
from ray.exceptions import ActorUnavailableError, RayError

from rl_cluster.cluster.actors import Actor, Ref, cause_of, is_here, read
from rl_cluster.cluster.placement import node_id
from rl_cluster.control import ProcessId
from rl_cluster.run_queue import RunQueue
from rl_cluster.supervision.health import (
    Deadlines,
    Health,
    Observation,
    failed_because,
    in_doubt,
)
from rl_cluster.supervision.plan import Kind, WorkerRecord

_HERE_S = 10.0  # for what was seen to be here
_NEW_S = 15.0

Notice = dict[str, str]
"""Kind, cause, action and detail of an incident, as its worker words it."""


class WorkerState(TypedDict):
    """What outlives the supervisor."""

    epoch: int
    restarts: int
    failures_ago_s: list[float]
    cause: str
    fruitless: int


class Worker:
    """A place that an actor fills; actors come and go, the place stays."""

    def __init__(self, name: str, task: str, kind: Kind, deadlines: Deadlines) -> None:
        self.name, self.task, self.kind = name, task, kind
        self._for_good = kind != "weights"  # Ray brings that one back, with the same handle
        self.actor: Actor | None = None
        self.status: Any = None
        """Figures that the present actor last gave; None before the first."""
        self.epoch = 0
        """Life of this place, over all sessions; 0: never filled."""
        self.restarts = 0
        """Lives that ended by a failure."""
        self._deadlines = deadlines
        self._seen = Observation(None, 0.0, 0.0)
        self._asked: dict[str, Ref] = {}
        self._failures_s: list[float] = []
        self._cause, self._fruitless = "", 0
        self._down_s: float | None = None
        self._filled_s = 0.0
        self._first_work: int | None = None
        self._line: RunQueue | None = None

    @property
    def health(self) -> Health | None:
        """What the present actor last said of itself."""
        return self._seen.health

    @property
    def seen(self) -> Observation:
        """What is known of the present actor."""
        return self._seen

    def fill(self, actor: Actor, now_s: float) -> None:
        """Take an actor of `epoch`: a new one, or one that an earlier supervisor started."""
        self.actor, self._filled_s = actor, now_s
        self.status, self._first_work = None, None
        self._asked.clear()
        self._seen = Observation(None, now_s, now_s)

    def look(self, now_s: float) -> tuple[str | None, tuple[Notice, ...]]:
        """Read what has come, and ask again.

        Returns:
          The cause, if the actor was found to have failed; and notices that came with its figures.
        """
        if self.actor is None:
            return None, ()
        notices: tuple[Notice, ...] = ()
        try:
            self._ask("health", lambda health: self._take(health, now_s))
            if self._seen.health is not None:
                notices = self._ask_status()
        except RayError as error:
            return self.fail(now_s, cause_of(error)), notices
        health = self._seen.health
        if health is not None and health.epoch < self.epoch:
            return self.fail(
                now_s, f"it is life {health.epoch} of its place, and {self.epoch} is due"
            ), ()
        cause = failed_because(self._seen, now_s, self._deadlines, self._starved_s(now_s))
        return (None if cause is None else self.fail(now_s, cause)), notices

    def is_awaited(self, now_s: float) -> bool:
        """Whether its actor has not answered yet, and half of its time to start is over."""
        new = self.actor is not None and self._seen.health is None
        return new and in_doubt(self._seen, now_s, self._deadlines)

    def wait_longer(self, now_s: float) -> None:
        """Give its actor all of its time to start again."""
        self._seen = Observation(None, now_s, now_s)

    def fail(self, now_s: float, cause: str) -> str:
        """Kill the actor and remember why."""
        self._fruitless = 0 if self._was_fruitful else self._fruitless + 1
        down_s = now_s if self._down_s is None else self._down_s
        self.empty()
        self._down_s = down_s
        self.restarts += 1
        self._failures_s.append(now_s)
        self._cause = cause
        return cause

    def recovered_after_s(self, now_s: float) -> float | None:
        """Seconds from its failure until it was seen to get on again; told once, None else."""
        if self._down_s is None or not self._was_fruitful:
            return None
        down_s, self._down_s = self._down_s, None
        return now_s - down_s

    def is_coming(self, now_s: float) -> bool:
        """Whether its actor is new, and has yet to get on."""
        new = self.actor is not None and now_s - self._filled_s < _NEW_S
        return new and not self._was_fruitful

    def empty(self) -> None:
        """Kill the actor, if there is one; a place that is wanted no more does not recover."""
        if self.actor is not None:
            kill(self.actor, self._seen.health, self._for_good)
        self.actor, self.status, self._down_s = None, None, None
        self._asked.clear()
        self._seen = Observation(None, 0.0, 0.0)

    def forgive(self) -> None:
        """Forget failures: a person wants it tried again."""
        self._failures_s, self._fruitless = [], 0

    def record(self) -> WorkerRecord:
        """This place for the planner."""
        alive, failures = self.actor is not None, tuple(self._failures_s)
        return WorkerRecord(
            self.name, self.task, self.kind, alive, failures, self._cause, self._fruitless
        )

    def state(self, now_s: float) -> WorkerState:
        """What a later supervisor needs to know of this place."""
        ago_s = [now_s - failure_s for failure_s in self._failures_s[-100:]]
        return {
            "epoch": self.epoch,
            "restarts": self.restarts,
            "failures_ago_s": ago_s,
            "cause": self._cause,
            "fruitless": self._fruitless,
        }

    def restore(self, state: WorkerState, now_s: float) -> None:
        """Go on from what an earlier supervisor knew."""
        self.epoch, self.restarts = state["epoch"], state["restarts"]
        self._failures_s = [now_s - ago_s for ago_s in state["failures_ago_s"]]
        self._cause, self._fruitless = state["cause"], state["fruitless"]

    @property
    def _was_fruitful(self) -> bool:
        health = self._seen.health
        if health is None or health.in_vain or self._first_work is None:
            return False
        return health.work > self._first_work

    def _starved_s(self, now_s: float) -> float:
        """Seconds that it stood in line for a processor since it is in doubt, where known."""
        health = self._seen.health
        if health is None or not in_doubt(self._seen, now_s, self._deadlines):
            self._line = None
            return 0.0
        if self._line is None and health.node_id == node_id():
            self._line = RunQueue(health.pid)
        return 0.0 if self._line is None else self._line.waited_s()

    def _take(self, health: Health, now_s: float) -> None:
        if self._first_work is None and health.phase != "starting":
            self._first_work = health.work
        self._seen = self._seen.after(health, now_s)

    def _ask_status(self) -> tuple[Notice, ...]:
        """Ask for figures; a rollout's come with its blocks, the weights' holder has none."""
        if self.kind in ("rollout", "weights"):
            return ()
        new = self._ask("status", lambda status: setattr(self, "status", status))
        return getattr(self.status, "notices", ()) if new else ()

    def _ask(self, method: str, take: Callable[[Any], None]) -> bool:
        """Take the answer to an earlier question, if it is here, and ask the next."""
        assert self.actor is not None
        asked, answered = self._asked.get(method), False
        if asked is not None and not is_here(asked):
            return False
        if asked is not None:
            try:
                take(read(asked, _HERE_S))
                answered = True
            except ActorUnavailableError:
                pass
        self._asked[method] = getattr(self.actor, method).remote()
        return answered


def kill(actor: Actor, health: Health | None, for_good: bool = True) -> None:
    """End an actor's process, a frozen one at once where it is on this host.

    Args:
      for_good: Ray does not bring it back.
    """
    if health is not None and health.node_id == node_id():
        kill_process(ProcessId(health.pid, health.start_ticks, health.boot_id))
    ray.kill(actor, no_restart=for_good)


def kill_process(process: ProcessId) -> None:
    """End a process of this host; a later one that has its number by now is left alone."""
    if process.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
