"""One supervised actor as the supervisor sees it: what it last said, and how it failed.

Invariant: looking never blocks. A worker has failed when Ray says that it died, when its loop ended
with an error, or when a question stays unanswered past the heartbeat timeout; Ray itself never
notices a hang.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from rl_cluster.cluster.actors import Actor, Ref, cause_of, is_here, read
from rl_cluster.supervision.plan import Kind, WorkerRecord

_HERE_S = 10.0  # for what was seen to be here
_START_FACTOR = 5

Notice = dict[str, str]
"""Kind, cause, action and detail of an incident, as its worker words it."""


class Worker:
    """A place that an actor fills; actors come and go, the place stays."""

    def __init__(self, name: str, task: str, kind: Kind, heartbeat_timeout_s: float) -> None:
        self.name, self.task, self.kind = name, task, kind
        self.actor: Actor | None = None
        self.status: Any = None
        """What the present actor last answered; None before its first answer."""
        self.starts = 0
        self._timeout_s = heartbeat_timeout_s
        self._loop: Ref | None = None
        self._question: Ref | None = None
        self._answered_s = 0.0
        self._failures_s: list[float] = []
        self._cause = ""

    def filled(self, actor: Actor, loop: Ref | None) -> None:
        """Take a new actor and, where it has one, the call that runs its loop."""
        self.actor, self._loop, self._question = actor, loop, None
        self._answered_s = time.monotonic()
        self.starts += 1

    def look(self, now_s: float) -> tuple[str | None, tuple[Notice, ...]]:
        """Read what has come.

        Returns:
          The cause, if the actor was found to have failed; and notices that came with a new answer.
        """
        if self.actor is None:
            return None, ()
        try:
            if self._loop is not None and is_here(self._loop):
                read(self._loop, _HERE_S)
                self._loop = None
        except RayError as error:
            return self.fail(now_s, cause_of(error)), ()
        notices: tuple[Notice, ...] = ()
        try:
            notices = self._ask(now_s)
        except ActorUnavailableError:
            self._question = None
        except RayError as error:
            return self.fail(now_s, cause_of(error)), ()
        if now_s - self._answered_s > self._patience_s:
            return self.fail(now_s, f"no answer for {self._patience_s:.0f} s: hung"), ()
        return None, notices

    @property
    def _patience_s(self) -> float:
        """How long it may say nothing; longer before its first answer, while it loads."""
        return self._timeout_s * (1 if self.status is not None else _START_FACTOR)

    def fail(self, now_s: float, cause: str) -> str:
        """Kill the actor and remember why."""
        self.empty()
        self._failures_s.append(now_s)
        self._cause = cause
        return cause

    def empty(self) -> None:
        """Kill the actor, if there is one."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self._loop = self._question = self.status = None

    def record(self) -> WorkerRecord:
        """This place for the planner."""
        return WorkerRecord(
            self.name,
            self.task,
            self.kind,
            self.actor is not None,
            tuple(self._failures_s),
            self._cause,
        )

    def _ask(self, now_s: float) -> tuple[Notice, ...]:
        assert self.actor is not None
        notices: tuple[Notice, ...] = ()
        if self._question is not None and is_here(self._question):
            self.status = read(self._question, _HERE_S)
            self._question, self._answered_s = None, now_s
            notices = getattr(self.status, "notices", ())
        if self._question is None:
            method: Any = self.actor.ping if self.kind == "rollout" else self.actor.status
            self._question = method.remote()
        return notices
