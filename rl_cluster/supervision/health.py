"""Whether a worker is well: a pure judgement of what it said, and of how long it says nothing new.

Invariant: a worker has failed when it says so, when it answers nothing for as long as its phase may
take, or when it answers, at work, without any progress for that long. What it stood in line for a
processor meanwhile is not held against it, up to a bound. Time is the supervisor's own watch, which
stands still while the supervisor does: whoever was frozen together with everybody else accuses
nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "working", "waiting", "saving", "ended"]
"""`waiting`: for a call, or for the next time that something is due, so that no progress is;
`ended`: the loop was left as asked."""

_MOST_STARVED = 5.0
"""Deadlines that a starved worker gets on top; one that spins for ever is starved, too."""


@dataclass(frozen=True)
class Health:
    """What a worker says."""

    epoch: int
    """Which life of its place it is."""
    phase: Phase
    progress: int
    """Grows with every step of its work, and where its phase changes: it does not hang."""
    memory_bytes: int
    """Resident."""
    pid: int
    start_ticks: int
    """Of its process, as in /proc: a later one of the same number has others."""
    boot_id: str
    node_id: str
    failure: str | None = None
    """Why its loop ended, where it ended by an error."""
    in_vain: bool = False
    """It gets on, but nothing has come of it."""
    work: int = 0
    """Steps of its work alone; who is called, and does nothing, has none."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds that each phase may take without a sign of progress."""

    starting_s: float
    working_s: float
    saving_s: float

    def of(self, phase: Phase) -> float | None:
        """Seconds without progress that a phase allows; None: any."""
        return {
            "starting": self.starting_s,
            "working": self.working_s,
            "saving": self.saving_s,
            "waiting": None,
            "ended": None,
        }[phase]


@dataclass(frozen=True)
class Observation:
    """What the supervisor knows of one worker."""

    health: Health | None
    """Its newest answer; None before the first."""
    answered_s: float
    """When that came, or when the worker was started."""
    progressed_s: float
    """When its progress or its phase last changed."""

    @property
    def phase(self) -> Phase:
        """Which it was last in; before its first answer it is starting."""
        return "starting" if self.health is None else self.health.phase

    def after(self, health: Health, now_s: float) -> Observation:
        """Take in a new answer."""
        old = self.health
        moved = old is None or (old.progress, old.phase) != (health.progress, health.phase)
        return Observation(health, now_s, now_s if moved else self.progressed_s)


def failed_because(
    seen: Observation, now_s: float, deadlines: Deadlines, starved_s: float = 0.0
) -> str | None:
    """Why a worker counts as failed; None while it is well.

    Args:
      seen: what is known of it.
      now_s: the supervisor's watch.
      deadlines: of its phases.
      starved_s: what it stood in line for a processor since it is in doubt.
    """
    health = seen.health
    if health is not None and health.failure is not None:
        return health.failure
    phase = seen.phase
    silence_s, silent_limit_s = now_s - seen.answered_s, deadlines.of(phase) or deadlines.working_s
    if silence_s - min(starved_s, _MOST_STARVED * silent_limit_s) > silent_limit_s:
        return f"no answer for {silence_s:.0f} s while {phase} (limit {silent_limit_s:g} s): hung"
    stuck_s, limit_s = now_s - seen.progressed_s, deadlines.of(phase)
    if limit_s is not None and stuck_s - min(starved_s, _MOST_STARVED * limit_s) > limit_s:
        return f"alive without progress for {stuck_s:.0f} s while {phase} (limit {limit_s:g} s)"
    return None


def in_doubt(seen: Observation, now_s: float, deadlines: Deadlines) -> bool:
    """Whether a worker has used up half of a deadline."""
    limit_s = deadlines.of(seen.phase)
    silent = now_s - seen.answered_s > (limit_s or deadlines.working_s) / 2
    return silent or (limit_s is not None and now_s - seen.progressed_s > limit_s / 2)


def stalled_because(
    request_age_s: float | None, rollouts: Sequence[Observation], now_s: float, limit_s: float
) -> str | None:
    """Why a task stands still whose workers are all well: they wait for each other.

    Args:
      request_age_s: how long the learner has been asking for a batch; None: it is not.
      rollouts: all of the task.
      now_s: the supervisor's watch. limit_s: what both sides may wait at the same time.
    """
    idle_s = [
        now_s - seen.progressed_s
        for seen in rollouts
        if seen.health is not None and seen.health.phase == "waiting"
    ]
    if request_age_s is None or not rollouts or len(idle_s) < len(rollouts):
        return None
    if min(request_age_s, *idle_s) <= limit_s:
        return None
    return (
        f"the learner has had no batch for {request_age_s:.0f} s and no rollout was asked for "
        f"blocks for {min(idle_s):.0f} s (limit {limit_s:g} s): replay stands still"
    )


class Watch:
    """Seconds that the supervisor has really watched.

    Args:
      longest_tick_s: more than this between two looks was no watching: the host slept, the process
        was frozen or starved, and the others may have been, too.
    """

    def __init__(self, longest_tick_s: float) -> None:
        self._longest_s = longest_tick_s
        self._last_s: float | None = None
        self._watched_s = 0.0

    def look(self, monotonic_s: float) -> float:
        """Watched seconds so far."""
        if self._last_s is not None:
            self._watched_s += min(max(0.0, monotonic_s - self._last_s), self._longest_s)
        self._last_s = monotonic_s
        return self._watched_s
