"""How much of the machine the run takes: the tier that a person asked for, or less.

One tick at a time: under pressure down at once, first the optional work, then a game or half of the
environments; after a dwell without pressure up again, one step of the ladder in `load.py`.
Invariants: the load is never above what was asked for, nor above the cap that unclean boots left;
it never grows under pressure, nor twice within a dwell. Time is what passes between two ticks, each
counted for a minute at most, so that neither a jump of the clock nor a host that was off counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from rl_cluster.config import LoadConfig
from rl_cluster.settings import NonNegativeFloat, NonNegativeInt
from rl_cluster.supervision.load import Cap, Load, above, below
from rl_cluster.supervision.pressure import Pressure

CUSTOM = "custom"
"""Every task as configured."""
AUTO = "auto"
"""From light up to the biggest tier, as far as the machine allows."""
_LONGEST_TICK_S = 60.0
_MOST_DOUBLINGS = 5


@dataclass(frozen=True)
class LoadRule:
    """What loads there are, and how fast they change."""

    tiers: Mapping[str, Load]
    """Name to tier, fitted to the machine's memory."""
    custom: Load
    """What the tasks configure: all of them, the most environments, the largest batch."""
    tasks: int
    """Tasks that could train: neither complete nor parked nor paused."""
    dwell_s: float
    """Seconds without pressure before a step up."""
    cooldown_s: float
    """Seconds after a step down that do not count for the dwell."""
    settle_s: float
    """Seconds between two steps down."""

    @classmethod
    def of(cls, config: LoadConfig, custom: Load, tasks: int) -> LoadRule:
        """Return the rule that a configuration asks for."""
        tiers = {
            name: Load(tier.games, tier.environments, tier.batch)
            for name, tier in config.tiers.items()
        }
        return cls(tiers, custom, tasks, config.dwell_s, config.cooldown_s, config.settle_s)

    def goal(self, requested: str) -> Load:
        """Return the most that a requested tier takes.

        Raises:
          ValueError: there is no such tier; the message names those that there are.
        """
        if requested == CUSTOM:
            return self.custom
        if requested == AUTO:
            return max(self.tiers.values(), key=lambda t: (t.games * t.environments, t.batch))
        if requested not in self.tiers:
            known = ", ".join((CUSTOM, AUTO, *self.tiers))
            raise ValueError(f"there is no tier {requested!r}: ask for one of {known}")
        return self.tiers[requested]

    def first(self, requested: str) -> Load:
        """Return what a requested tier begins with: `auto` with light, others with all of it."""
        goal = self.goal(requested)
        return goal.at_most(self.tiers.get("light", goal)) if requested == AUTO else goal


@dataclass(frozen=True)
class LoadState:
    """What runs, and what is remembered for the next tick; plain values, kept on disk."""

    requested: str
    """The tier that a person asked for."""
    load: Load
    """What runs. Of `games` no more run than there are tasks."""
    shed: bool = False
    """Whether optional work, such as video and evaluation, is off."""
    asked: bool = False
    """Whether a person's request still waits for the next tick."""
    cap: Cap | None = None
    seen_s: NonNegativeFloat | None = None
    """Time of the last tick."""
    calm_s: NonNegativeFloat = 0.0
    """Seconds of low pressure in one stretch, since the last change and its cooldown."""
    cooldown_left_s: NonNegativeFloat = 0.0
    settle_left_s: NonNegativeFloat = 0.0
    on_trial: bool = False
    """Whether the last change was a step up that has not lasted for a dwell yet."""
    failed_load: Load | None = None
    """The load at which a step up was undone by pressure within its dwell."""
    failed_trials: NonNegativeInt = 0
    """How often; each time doubles the dwell before that load is tried again, up to 32 times."""

    def sizes(self, environments: int, batch: int) -> tuple[int, int]:
        """Return environments and batch of a task that configures these.

        A tier replaces what the task configures; `custom` only bounds it.
        """
        if self.requested == CUSTOM:
            return min(environments, self.load.environments), min(batch, self.load.batch)
        return self.load.environments, self.load.batch

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LoadState:
        """Return the state that `to_record` wrote.

        Raises:
          ValueError: a field is missing, or its value none that a state can have.
        """
        return _STATE.validate_python(dict(record))


_STATE = TypeAdapter(LoadState)


def start(requested: str, rule: LoadRule) -> LoadState:
    """Return the state of a run that begins: all that is asked for, or light for `auto`.

    Raises:
      ValueError: there is no such tier.
    """
    return LoadState(requested, rule.first(requested))


def with_cap(state: LoadState, cap: Cap | None) -> LoadState:
    """Bound a session's load from its first moment; None lifts an earlier bound."""
    load = state.load if cap is None else state.load.at_most(cap.load)
    return replace(state, cap=cap, load=load)


def request(state: LoadState, tier: str, rule: LoadRule) -> LoadState:
    """Note a person's request, which the next tick answers, whatever the cooldown says.

    The same tier again takes back at once what pressure took; `auto` again changes nothing. After
    a task was added, asking for the same tier gives it its place.

    Raises:
      ValueError: there is no such tier.
    """
    rule.goal(tier)
    if tier == state.requested == AUTO:
        return state
    return replace(state, requested=tier, asked=True)


def next_load(
    state: LoadState, pressure: Pressure, now_s: float, rule: LoadRule
) -> tuple[LoadState, str | None]:
    """One tick.

    Args:
      state: as the last tick left it.
      pressure: the machine's, now.
      now_s: present time, on the clock of the last tick; it may have jumped.
      rule: tiers and times; it may differ from the last tick's.

    Returns:
      The new state, and what changed and why; None where load and optional work stay.
    """
    before = (state.load, state.shed)
    state = _pass_time(state, pressure, now_s, rule)
    reasons: list[str] = []
    for change in (_answer, _bound, _step_down, _step_up):
        changed, reason = change(state, pressure, rule)
        if (changed.load, changed.shed) != (state.load, state.shed):
            reasons.append(reason)
        state = changed
    if (state.load, state.shed) == before:
        return state, None
    return state, f"{_text(*before)} → {_text(state.load, state.shed)}: {'; '.join(reasons)}"


def _pass_time(state: LoadState, pressure: Pressure, now_s: float, rule: LoadRule) -> LoadState:
    passed_s = 0.0 if state.seen_s is None else now_s - state.seen_s
    passed_s = min(max(passed_s, 0.0), _LONGEST_TICK_S)
    calm_s = state.calm_s + max(0.0, passed_s - state.cooldown_left_s)
    state = replace(
        state,
        seen_s=now_s,
        calm_s=calm_s if pressure.level == "low" else 0.0,
        cooldown_left_s=max(0.0, state.cooldown_left_s - passed_s),
        settle_left_s=max(0.0, state.settle_left_s - passed_s),
        cap=_shortened(state.cap, passed_s),
    )
    return _judge_trial(state, pressure, rule)


def _judge_trial(state: LoadState, pressure: Pressure, rule: LoadRule) -> LoadState:
    """Remember a step up that pressure answers; forget it once as much has lasted for a dwell."""
    if not state.on_trial:
        return state
    if pressure.level == "high":
        trials = min(state.failed_trials + 1, _MOST_DOUBLINGS)
        return replace(state, on_trial=False, failed_load=state.load, failed_trials=trials)
    if state.calm_s < rule.dwell_s:
        return state
    if _failed_before(state, state.load):
        state = replace(state, failed_load=None, failed_trials=0)
    return replace(state, on_trial=False)


def _failed_before(state: LoadState, load: Load) -> bool:
    failed = state.failed_load
    return failed is not None and failed.at_most(load) == failed


def _shortened(cap: Cap | None, passed_s: float) -> Cap | None:
    if cap is None or cap.left_s <= passed_s:
        return None
    return replace(cap, left_s=cap.left_s - passed_s)


def _answer(state: LoadState, pressure: Pressure, rule: LoadRule) -> tuple[LoadState, str]:
    """Take what a person asked for; under pressure only what is less than now."""
    if not state.asked:
        return state, ""
    reason = f"{state.requested} was asked for"
    load = rule.first(state.requested)
    if pressure.level == "high":
        return replace(state, asked=False, load=load.at_most(state.load)), reason
    return LoadState(state.requested, load, cap=state.cap, seen_s=state.seen_s), reason


def _bound(state: LoadState, pressure: Pressure, rule: LoadRule) -> tuple[LoadState, str]:
    """Keep below goal and cap, either of which may have changed since the last tick."""
    goal = rule.goal(state.requested)
    load = _capped(state.load.at_most(goal), state)
    over_goal = state.load.at_most(goal) != state.load
    reason = f"{state.requested} is {goal} now" if over_goal or not state.cap else state.cap.reason
    return replace(state, load=load), reason


def _step_down(state: LoadState, pressure: Pressure, rule: LoadRule) -> tuple[LoadState, str]:
    if pressure.level != "high" or state.settle_left_s > 0:
        return state, ""
    running = _with_tasks(state.load, rule)
    lower = below(running, games_first=state.requested == CUSTOM)
    if state.shed and lower == running:
        return state, ""
    return replace(
        state,
        load=lower if state.shed else state.load,
        shed=True,
        cooldown_left_s=rule.cooldown_s,
        settle_left_s=rule.settle_s,
    ), str(pressure)


def _step_up(state: LoadState, pressure: Pressure, rule: LoadRule) -> tuple[LoadState, str]:
    goal = _with_tasks(_capped(rule.goal(state.requested), state), rule)
    load = above(state.load, goal, games_last=state.requested == CUSTOM)
    load = state.load if state.shed else load
    dwell_s = rule.dwell_s * (2**state.failed_trials if _failed_before(state, load) else 1)
    if pressure.level != "low" or state.calm_s < dwell_s or (load == state.load and not state.shed):
        return state, ""
    reason = f"{state.calm_s:.0f} s without pressure"
    return replace(state, load=load, shed=False, calm_s=0.0, on_trial=True), reason


def _capped(load: Load, state: LoadState) -> Load:
    return load if state.cap is None else load.at_most(state.cap.load)


def _with_tasks(load: Load, rule: LoadRule) -> Load:
    """The load without places that nobody takes."""
    return replace(load, games=max(1, min(load.games, rule.tasks)))


def _text(load: Load, shed: bool) -> str:
    return f"{load}, without optional work" if shed else str(load)
