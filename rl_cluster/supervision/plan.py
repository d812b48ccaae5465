"""What to do about workers that failed: a pure function from records to actions.

Erlang's rules. One for one for learners, rollouts and evaluators; rest for one for replay, on which
learner and rollouts of its task work. Restarts wait twice as long each
time within a window, and after too many the task is parked with its reason while the others go on.
Invariant: the same records and the same random state give the same actions; nothing is started for
a parked task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["replay", "learner", "rollout", "evaluator"]

_RESTARTED_WITH: Mapping[Kind, tuple[Kind, ...]] = {
    "replay": ("learner", "rollout"),
    "learner": (),
    "rollout": (),
    "evaluator": (),
}


@dataclass(frozen=True)
class RestartRule:
    """How often, and how fast, a worker may come back."""

    backoff_s: float
    max_restarts: int
    window_s: float


@dataclass(frozen=True)
class WorkerRecord:
    """One worker as it was last seen."""

    name: str
    task: str
    kind: Kind
    alive: bool
    failures_s: tuple[float, ...] = ()
    """Times of its failures, oldest first."""
    cause: str = ""
    """Of the newest failure."""


@dataclass(frozen=True)
class Start:
    """Start a worker that is not there."""

    worker: str


@dataclass(frozen=True)
class Stop:
    """Stop a live worker, since one that it depends on is replaced."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Park:
    """Give a task up until a person says otherwise."""

    task: str
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Do without a worker that its task can train without: the evaluator."""

    worker: str
    reason: str


Action = Start | Stop | Park | GiveUp


def plan(
    workers: Sequence[WorkerRecord],
    parked: frozenset[str],
    now_s: float,
    rule: RestartRule,
    rng: np.random.Generator,
) -> list[Action]:
    """Actions that bring actual workers to the desired ones.

    Args:
      workers: every desired worker; `alive` tells whether it runs.
      parked: tasks, and single workers, that were given up.
      now_s: present time, on the clock of `failures_s`.
      rule: intensity limit and back-off.
      rng: source of the back-off's jitter (± 20 %).
    """
    actions: list[Action] = []
    given_up = set(parked)
    for worker in workers:
        starting = {action.worker for action in actions if isinstance(action, Start)}
        if worker.alive or worker.name in starting or given_up & {worker.name, worker.task}:
            continue
        recent = [t for t in worker.failures_s if now_s - t <= rule.window_s]
        if len(recent) > rule.max_restarts:
            reason = _parked_because(worker, len(recent), rule)
            optional = worker.kind == "evaluator"
            given_up.add(worker.name if optional else worker.task)
            actions.append(GiveUp(worker.name, reason) if optional else Park(worker.task, reason))
        elif _is_due(recent, now_s, rule, rng) and not _lacks_replay(worker, workers, starting):
            actions += _restart(worker, workers)
    return [a for a in actions if isinstance(a, Park) or _task(a, workers) not in given_up]


def _lacks_replay(
    worker: WorkerRecord, workers: Sequence[WorkerRecord], starting: set[str]
) -> bool:
    """Whether a worker would start before the replay that it has to be joined to."""
    if worker.kind not in ("learner", "rollout"):
        return False
    replays = [w for w in workers if w.task == worker.task and w.kind == "replay"]
    return any(not w.alive and w.name not in starting for w in replays)


def _is_due(
    recent_s: Sequence[float], now_s: float, rule: RestartRule, rng: np.random.Generator
) -> bool:
    if not recent_s:
        return True
    wait_s = rule.backoff_s * 2 ** (len(recent_s) - 1) * rng.uniform(0.8, 1.2)
    return bool(now_s - recent_s[-1] >= wait_s)


def _restart(worker: WorkerRecord, workers: Sequence[WorkerRecord]) -> list[Action]:
    kinds = _RESTARTED_WITH[worker.kind]
    dependents = [w for w in workers if w.task == worker.task and w.kind in kinds and w.alive]
    stops = [Stop(w.name, f"{worker.name} is replaced") for w in dependents]
    return [*stops, Start(worker.name), *(Start(w.name) for w in dependents)]


def _task(action: Start | Stop | GiveUp, workers: Sequence[WorkerRecord]) -> str:
    return next(w.task for w in workers if w.name == action.worker)


def _parked_because(worker: WorkerRecord, failures: int, rule: RestartRule) -> str:
    return (
        f"{worker.name} failed {failures} times within {rule.window_s:.0f} s, more than the "
        f"{rule.max_restarts} restarts allowed; last cause: {worker.cause}"
    )
