"""Time slices: every task gets its share of too few slots, and keeps its slot for a slice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_cluster.supervision.slices import TaskPlace, rotate

SLICE_S = 1_800.0
TICK_S = 60.0


def places(*priorities: int) -> tuple[TaskPlace, ...]:
    return tuple(TaskPlace(f"game-{i}", priority) for i, priority in enumerate(priorities))


def active(tasks: Sequence[TaskPlace]) -> list[str]:
    return [task.name for task in tasks if task.active]


def trained_s(
    tasks: tuple[TaskPlace, ...], slots: int, seconds: float, tick_s: float = TICK_S
) -> tuple[dict[str, float], tuple[TaskPlace, ...]]:
    """Seconds that each task trains, and where they are then."""
    total = {task.name: 0.0 for task in tasks}
    for _ in range(int(seconds / tick_s)):
        for name in active(tasks):
            total[name] += tick_s
        tasks = rotate(tasks, slots, tick_s, SLICE_S)
    return total, tasks


def fair_shares(tasks: Sequence[TaskPlace], slots: int) -> dict[str, float]:
    """Slots in proportion to weights, of which none takes more than one: what is left is shared."""
    shares: dict[str, float] = {}
    rest, room = list(tasks), float(slots)
    while rest:
        weight = sum(task.weight for task in rest)
        full = [task for task in rest if room * task.weight >= weight]
        for task in full or rest:
            shares[task.name] = min(1.0, room * task.weight / weight)
        rest = [task for task in rest if task.name not in shares]
        room = slots - sum(shares.values())
    return shares


def test_where_all_have_room_all_train_and_nobody_is_swapped() -> None:
    tasks = rotate(places(0, 3, -2), 3, 0.0, SLICE_S)
    for _ in range(200):
        assert active(tasks) == ["game-0", "game-1", "game-2"]
        tasks = rotate(tasks, 3, TICK_S, SLICE_S)


def test_among_those_that_start_together_the_higher_priority_goes_first() -> None:
    assert active(rotate(places(0, 2, 1, 2), 2, 0.0, SLICE_S)) == ["game-1", "game-3"]
    assert active(rotate(places(0, 0, 0), 2, 0.0, SLICE_S)) == ["game-0", "game-1"]


def test_ten_games_all_progress_alike_on_a_tier_of_two() -> None:
    total, _ = trained_s(rotate(places(*[0] * 10), 2, 0.0, SLICE_S), 2, 50 * SLICE_S)
    assert set(total.values()) == {10 * SLICE_S}


def test_each_step_of_priority_doubles_the_share_and_nobody_starves() -> None:
    total, _ = trained_s(rotate(places(0, 1, 2), 1, 0.0, SLICE_S), 1, 70 * SLICE_S)
    assert total == {
        "game-0": pytest.approx(10 * SLICE_S, abs=SLICE_S),
        "game-1": pytest.approx(20 * SLICE_S, abs=SLICE_S),
        "game-2": pytest.approx(40 * SLICE_S, abs=SLICE_S),
    }


@settings(max_examples=30)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=8), st.integers(1, 5))
def test_shares_are_those_of_the_weights(priorities: list[int], slots: int) -> None:
    tasks = rotate(places(*priorities), slots, 0.0, SLICE_S)
    seconds = 600 * SLICE_S
    total, tasks = trained_s(tasks, slots, seconds, tick_s=SLICE_S / 3)
    for name, share in fair_shares(tasks, slots).items():
        assert total[name] / seconds == pytest.approx(share, abs=0.03)
        assert total[name] > 0


@settings(max_examples=100)
@given(st.data())
def test_whatever_happens_slots_are_filled_and_slices_kept(data: st.DataObject) -> None:
    tasks = places(*data.draw(st.lists(st.integers(-15, 15), min_size=1, max_size=6)))
    slots = 2
    for _ in range(data.draw(st.integers(1, 25))):
        passed_s = data.draw(st.sampled_from([0.0, 60.0, 700.0, 5_000.0]))
        fewer = data.draw(st.sampled_from([slots, slots, slots, 0, 1, 2, 4]))
        turned = data.draw(st.sampled_from(["", "", *(task.name for task in tasks)]))
        before = tuple(replace(t, able=t.able != (t.name == turned)) for t in tasks)
        tasks = rotate(before, fewer, passed_s, SLICE_S)
        able = [task for task in tasks if task.able]
        assert [task.name for task in tasks] == [task.name for task in before]
        assert len(active(tasks)) == min(fewer, len(able))
        assert all(task.able for task in tasks if task.active)
        if fewer >= slots:
            kept = [
                t.name for t in before if t.able and t.active and t.slice_s + passed_s < SLICE_S
            ]
            assert set(kept) <= set(active(tasks))
        slots = fewer


def test_a_swap_waits_for_the_end_of_the_slice() -> None:
    tasks = rotate(places(0, 0), 1, 0.0, SLICE_S)
    tasks = rotate(tasks, 1, SLICE_S - 1.0, SLICE_S)
    assert active(tasks) == ["game-0"]
    tasks = rotate(tasks, 1, 1.0, SLICE_S)
    assert active(tasks) == ["game-1"]


def test_a_free_slot_is_taken_at_once() -> None:
    tasks = rotate(rotate(places(0, 0, 0), 1, 0.0, SLICE_S), 2, 1.0, SLICE_S)
    assert active(tasks) == ["game-0", "game-1"]
    ended = tuple(replace(task, able=task.name != "game-0") for task in tasks)
    assert active(rotate(ended, 2, 1.0, SLICE_S)) == ["game-1", "game-2"]


def test_fewer_slots_stop_who_trained_most_for_its_weight() -> None:
    tasks = (
        TaskPlace("long", active=True, slice_s=500.0, turn_s=900.0),
        TaskPlace("short", active=True, slice_s=500.0, turn_s=300.0),
    )
    assert active(rotate(tasks, 1, TICK_S, SLICE_S)) == ["short"]


@pytest.mark.parametrize("away", ["added", "parked"])
def test_who_comes_late_is_not_owed_the_time_before(away: str) -> None:
    """A game that comes to a run of four weeks gets its turn soon, and then no more than others."""
    _, tasks = trained_s(rotate(places(0, 0), 1, 0.0, SLICE_S), 1, 28 * 86_400, tick_s=600.0)
    late = TaskPlace("late", able=True) if away == "added" else TaskPlace("late", turn_s=3_600.0)
    tasks = rotate((*tasks, late), 1, 0.0, SLICE_S)
    total, _ = trained_s(tasks, 1, 30 * SLICE_S)
    assert 0 < total["late"] <= 13 * SLICE_S
    assert min(total.values()) >= 8 * SLICE_S


def test_places_go_through_json_so_that_a_restart_goes_on() -> None:
    _, tasks = trained_s(rotate(places(0, 1, 2), 1, 0.0, SLICE_S), 1, 5 * SLICE_S + 600.0)
    text = json.dumps([task.to_record() for task in tasks], allow_nan=False)
    read = tuple(TaskPlace.from_record(record) for record in json.loads(text))
    assert read == tasks
    assert active(rotate(read, 1, 0.0, SLICE_S)) == active(tasks)


@pytest.mark.parametrize("damage", [{"turn_s": -1.0}, {"slice_s": "x"}, {"priority": None}])
def test_a_damaged_place_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(damage))):
        TaskPlace.from_record({**TaskPlace("game").to_record(), **damage})


def test_a_slice_begins_when_its_workers_are_made() -> None:
    """Else slices shorter than a start would be over before anybody had trained."""
    starting = tuple(replace(t, at_work=False) for t in rotate(places(0, 0), 1, 0.0, SLICE_S))
    tasks = rotate(starting, 1, 2 * SLICE_S, SLICE_S)
    assert active(tasks) == ["game-0"]
    tasks = rotate([replace(t, at_work=True) for t in tasks], 1, SLICE_S - 1.0, SLICE_S)
    assert active(tasks) == ["game-0"]
    assert active(rotate(tasks, 1, 1.0, SLICE_S)) == ["game-1"]
