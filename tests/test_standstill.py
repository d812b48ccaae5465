"""When a cluster stands still: found soon where that is certain, never after a single look."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.supervision.health import Watch
from rl_cluster.supervision.standstill import Standstill

RAYLET = ("raylet (process 7)",)
STOPPED_S, SILENT_S = 5.0, 10.0
LOOK_S = 0.25

Look = tuple[float, tuple[str, ...], bool | None]


def first_cause(looks: Iterable[Look]) -> tuple[float, str] | None:
    """When it was found, and why."""
    standstill = Standstill()
    for now_s, stopped, answered in looks:
        if (cause := standstill.lost_because(stopped, answered, now_s)) is not None:
            return now_s, cause
    return None


@given(st.floats(0, 1e4))
def test_a_stopped_process_is_found_in_time_and_named(start_s: float) -> None:
    looks = [(start_s + i * LOOK_S, RAYLET, True) for i in range(100)]
    found = first_cause(looks)
    assert found is not None and "raylet (process 7)" in found[1]
    assert STOPPED_S <= found[0] - start_s + 1e-6 <= STOPPED_S + 2 * LOOK_S


@given(st.lists(st.tuples(st.integers(1, 19), st.integers(1, 5)), max_size=20))
def test_one_that_goes_on_each_time_is_not_lost(spells: list[tuple[int, int]]) -> None:
    """As whoever attaches a tool to it, or moves it, stops it for a moment."""
    states = [s for stop, go in spells for s in (*[RAYLET] * stop, *[()] * go)]
    assert first_cause((i * LOOK_S, s, True) for i, s in enumerate(states)) is None


@given(st.integers(1, 60))
def test_a_control_store_that_falls_silent_is_found_in_time(asked_every: int) -> None:
    """However often it is asked; what counts is the time since its last answer."""
    every_s = asked_every * LOOK_S
    looks: list[Look] = [(0.0, (), True)]
    for i in range(1, 400):
        looks.append((i * LOOK_S, (), False if i % asked_every == 0 else None))
    found = first_cause(looks)
    assert found is not None and "hung" in found[1]
    assert SILENT_S <= found[0] <= SILENT_S + every_s


@given(st.lists(st.integers(0, 4), max_size=50))
def test_one_that_answers_now_and_then_is_slow_and_not_lost(missed: list[int]) -> None:
    """Four questions unanswered in a row, two seconds apart: a host with too much to do."""
    answers = [True, *(a for count in missed for a in (*[False] * count, True))]
    assert first_cause((2.0 * i, (), answer) for i, answer in enumerate(answers)) is None


@given(st.lists(st.floats(0, 60), max_size=50))
def test_who_never_answered_is_not_missed(gaps_s: list[float]) -> None:
    """The question itself may not get through, and every cluster would be given up for it."""
    now_s = 0.0
    looks: list[Look] = []
    for gap_s in gaps_s:
        now_s += gap_s
        looks.append((now_s, (), False))
    assert first_cause(looks) is None


@given(st.floats(60, 1e6), st.booleans())
def test_a_host_that_slept_accuses_nobody(slept_s: float, stopped: bool) -> None:
    """All that was frozen thaws in any order: the first look may come before the others go on."""
    watch, standstill = Watch(longest_tick_s=2.0), Standstill()
    assert standstill.lost_because((), True, watch.look(0.0)) is None
    now_s = watch.look(slept_s)
    assert standstill.lost_because(RAYLET if stopped else (), False, now_s) is None
    assert standstill.lost_because((), True, watch.look(slept_s + 2.0)) is None
