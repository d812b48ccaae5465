"""What to do about what should run and what runs: a pure function from records to actions.

Erlang's rules. One for one for learners, rollouts and evaluators, and for what rovers have in their
place: reader, courier, field; rest for one for replay, on which learner and rollouts or reader of
its task work. Restarts wait twice as long each time within a window, and
after too many, or after several that brought no progress, the task is parked with its reason while
the others go on. Invariant: the same records and the same random state give the same actions;
nothing is started for a task that should not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["replay", "learner", "rollout", "reader", "evaluator", "courier", "field", "weights"]

_ON_REPLAY: tuple[Kind, ...] = ("learner", "rollout", "reader")
"""Kinds that are joined to their task's replay, and start anew with it."""
_OPTIONAL: tuple[Kind, ...] = ("evaluator", "courier")
"""Kinds that a task trains without, if it must."""


@dataclass(frozen=True)
class RestartRule:
    """How often, and how fast, a worker may come back."""

    backoff_s: float
    max_restarts: int
    window_s: float
    max_backoff_s: float = 60.0
    max_fruitless: int = 1_000_000


@dataclass(frozen=True)
class Desired:
    """What should run."""

    tasks: frozenset[str]
    """Tasks that should be at work."""
    given_up: frozenset[str]
    """Single workers that their task does without."""
    rule: RestartRule


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
    fruitless: int = 0
    """Lives in a row that ended without progress."""


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
class Retire:
    """Let a task save and end its workers: its place is another's now."""

    task: str


@dataclass(frozen=True)
class Park:
    """Give a task up until a person says otherwise."""

    task: str
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Do without a worker that its task can train without: evaluator or courier."""

    worker: str
    reason: str


Action = Start | Stop | Retire | Park | GiveUp


def plan(
    desired: Desired, actual: Sequence[WorkerRecord], now_s: float, rng: np.random.Generator
) -> list[Action]:
    """Actions that bring actual workers to the desired ones.

    Args:
      desired: which tasks should run, and how restarts are limited.
      actual: every worker of every task; `alive` tells whether it runs.
      now_s: present time, on the clock of `failures_s`.
      rng: source of the back-off's jitter (± 20 %).
    """
    unwanted = {w.task for w in actual if w.alive and w.task not in desired.tasks}
    actions: list[Action] = [Retire(task) for task in sorted(unwanted)]
    given_up = set(desired.given_up)
    wanted = [w for w in actual if w.task in desired.tasks]
    for worker in wanted:
        starting = {action.worker for action in actions if isinstance(action, Start)}
        if worker.alive or worker.name in starting or given_up & {worker.name, worker.task}:
            continue
        reason = _hopeless_because(worker, now_s, desired.rule)
        if reason is not None:
            optional = worker.kind in _OPTIONAL
            given_up.add(worker.name if optional else worker.task)
            actions.append(GiveUp(worker.name, reason) if optional else Park(worker.task, reason))
        elif _is_due(worker, now_s, desired.rule, rng) and not _lacks_replay(
            worker, wanted, starting
        ):
            actions += _restart(worker, wanted)
    return [a for a in actions if not _is_for(a, given_up, wanted)]


def _hopeless_because(worker: WorkerRecord, now_s: float, rule: RestartRule) -> str | None:
    recent = _recent(worker, now_s, rule)
    if len(recent) > rule.max_restarts:
        return (
            f"{worker.name} failed {len(recent)} times within {rule.window_s:.0f} s, more than the "
            f"{rule.max_restarts} restarts allowed; last cause: {worker.cause}"
        )
    if worker.fruitless > rule.max_fruitless:
        return (
            f"{worker.name} failed {worker.fruitless} times in a row without any progress, more "
            f"than the {rule.max_fruitless} allowed; last cause: {worker.cause}"
        )
    return None


def _recent(worker: WorkerRecord, now_s: float, rule: RestartRule) -> list[float]:
    return [t for t in worker.failures_s if now_s - t <= rule.window_s]


def _lacks_replay(
    worker: WorkerRecord, workers: Sequence[WorkerRecord], starting: set[str]
) -> bool:
    """Whether a worker would start before the replay that it has to be joined to."""
    if worker.kind not in _ON_REPLAY:
        return False
    replays = [w for w in workers if w.task == worker.task and w.kind == "replay"]
    return any(not w.alive and w.name not in starting for w in replays)


def _is_due(
    worker: WorkerRecord, now_s: float, rule: RestartRule, rng: np.random.Generator
) -> bool:
    """The first restart in a window is due at once, each further one later."""
    recent_s = _recent(worker, now_s, rule)
    if len(recent_s) < 2:
        return True
    wait_s = min(rule.max_backoff_s, rule.backoff_s * 2 ** (len(recent_s) - 2))
    return bool(now_s - recent_s[-1] >= wait_s * rng.uniform(0.8, 1.2))


def _restart(worker: WorkerRecord, workers: Sequence[WorkerRecord]) -> list[Action]:
    kinds = _ON_REPLAY if worker.kind == "replay" else ()
    dependents = [w for w in workers if w.task == worker.task and w.kind in kinds and w.alive]
    stops = [Stop(w.name, f"{worker.name} is replaced") for w in dependents]
    return [*stops, Start(worker.name), *(Start(w.name) for w in dependents)]


def _is_for(action: Action, given_up: set[str], workers: Sequence[WorkerRecord]) -> bool:
    """Whether a worker's action came before its task was parked in the same plan."""
    if isinstance(action, Park | Retire):
        return False
    return next(w.task for w in workers if w.name == action.worker) in given_up
