"""Which tasks train now where not all have room: time slices, weighted by priority.

Weighted fair queueing: a task's `turn_s` is the time that it trained, divided by its weight
2^priority; a free slot goes to the task with the least. In the long run two tasks that share slots
train in proportion to their weights, and nobody starves; among those that start together the
higher priority goes first.
Invariants: never more active tasks than slots, never a slot free while a task waits; nobody loses
its slot within a slice unless the slots became fewer. All state is in the records, so that a
restart goes on where it was, and it holds no times of day, so that clocks may jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from rl_cluster.settings import NonNegativeFloat

_MOST_PRIORITY = 10
_LAG_SLICES = 2


@dataclass(frozen=True)
class TaskPlace:
    """A task's place in the queue; plain values, kept on disk."""

    name: str
    priority: int = 0
    """Each step up doubles the task's share; beyond ± 10 it doubles no more."""
    able: bool = True
    """Whether it could train: neither complete, parked nor paused by a person."""
    active: bool = False
    """Whether it has a slot."""
    at_work: bool = True
    """Whether its workers are made; until then a slot's time does not count, or short slices would
    be over before anybody had trained."""
    slice_s: NonNegativeFloat = 0.0
    """Seconds trained of the present slice."""
    turn_s: NonNegativeFloat = 0.0
    """Seconds trained in all, divided by the weight; a task that could not train is not owed."""

    @property
    def weight(self) -> float:
        """Share of the slots, relative to priority 0."""
        return 2.0 ** max(-_MOST_PRIORITY, min(self.priority, _MOST_PRIORITY))

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> TaskPlace:
        """Return the place that `to_record` wrote.

        Raises:
          ValueError: a field is missing or of the wrong type.
        """
        return _PLACE.validate_python(record)


_PLACE = TypeAdapter(TaskPlace)


def rotate(
    places: Sequence[TaskPlace], slots: int, passed_s: float, slice_s: float
) -> tuple[TaskPlace, ...]:
    """Return the places, in the same order, after some time: `active` says who trains now.

    Args:
      places: as the last call left them; tasks may have come, gone, or changed.
      slots: tasks that may train at once; 0 stops all.
      passed_s: seconds since the last call, in which those that were active and at work trained.
      slice_s: seconds that a task trains before it gives way to one that waits.
    """
    served = _bounded_lag([_served(place, passed_s) for place in places], slice_s)
    chosen = _chosen(served, slots, slice_s)
    return tuple(_placed(place, place.name in chosen, slice_s) for place in served)


def _served(place: TaskPlace, passed_s: float) -> TaskPlace:
    if not (place.active and place.at_work):
        return place
    turn_s = place.turn_s + passed_s / place.weight
    return replace(place, slice_s=place.slice_s + passed_s, turn_s=turn_s)


def _bounded_lag(places: Sequence[TaskPlace], slice_s: float) -> list[TaskPlace]:
    """Forget what a task did not train while it was away, or before it came.

    Otherwise a task added to a run of some weeks would take a slot for weeks.
    """
    able = [place for place in places if place.able]
    if not able:
        return list(places)
    lag_s = _LAG_SLICES * slice_s / min(place.weight for place in able)
    least_s = max(place.turn_s for place in able) - lag_s
    return [replace(p, turn_s=max(p.turn_s, least_s)) if p.able else p for p in places]


def _chosen(places: Sequence[TaskPlace], slots: int, slice_s: float) -> set[str]:
    def turn(place: TaskPlace) -> tuple[bool, float, int]:
        keeps_slot = place.active and place.slice_s < slice_s
        return not keeps_slot, place.turn_s, -place.priority

    able = sorted((place for place in places if place.able), key=turn)
    return {place.name for place in able[: max(0, slots)]}


def _placed(place: TaskPlace, active: bool, slice_s: float) -> TaskPlace:
    goes_on = active and place.active and place.slice_s < slice_s
    return replace(place, active=active, slice_s=place.slice_s if goes_on else 0.0)
