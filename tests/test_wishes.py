"""Wishes: what people asked for outlives every process, whole and as they said it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.cluster import names
from rl_cluster.supervision.wishes import Wishes

NAMES = st.from_regex(r"[\w-]{1,8}", fullmatch=True)
VALUES = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))
SETTINGS = st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=3)
WISHES = st.builds(
    Wishes,
    tier=NAMES,
    paused=st.sets(NAMES, max_size=4),
    parked=st.dictionaries(NAMES, st.text(), max_size=4),
    given_up=st.sets(NAMES.map(names.evaluator_name), max_size=4),
    removed=st.sets(NAMES, max_size=4),
    added=st.dictionaries(NAMES, SETTINGS, max_size=3),
    changes=st.dictionaries(NAMES, SETTINGS, max_size=3),
)


@given(WISHES)
def test_wishes_come_back_from_disk_as_they_were(wishes: Wishes) -> None:
    text = json.dumps(wishes.to_record(), allow_nan=False)
    assert Wishes.from_record(json.loads(text)) == wishes


@given(WISHES)
def test_the_same_wishes_are_the_same_text(wishes: Wishes) -> None:
    """Sets have no order of their own; files that are compared have."""
    again = dataclasses.replace(wishes, paused=set(sorted(wishes.paused, reverse=True)))
    assert json.dumps(again.to_record()) == json.dumps(wishes.to_record())


def test_without_a_word_everything_is_as_configured() -> None:
    assert Wishes("light") == Wishes.from_record({"tier": "light"})


@pytest.mark.parametrize(
    "damage",
    [
        {"tier": 3},
        {"tier": None},
        {"paused": "Pong"},
        {"parked": ["Pong"]},
        {"added": {"Pong": 1}},
        {"changes": {"Pong": None}},
        {"unheard_of": 1},
    ],
)
def test_a_damaged_record_is_refused_by_name(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(damage))):
        Wishes.from_record({**Wishes("light").to_record(), **damage})


def test_a_record_without_a_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="tier"):
        Wishes.from_record({"paused": []})


@given(WISHES, NAMES)
def test_what_is_tried_again_is_no_longer_given_up_and_nothing_else_changes(
    wishes: Wishes, task: str
) -> None:
    before = Wishes.from_record(wishes.to_record())
    wishes.try_again(task)
    assert wishes.parked == {k: v for k, v in before.parked.items() if k != task}
    assert wishes.given_up == before.given_up - {names.evaluator_name(task)}
    assert dataclasses.replace(wishes, parked={}, given_up=set()) == dataclasses.replace(
        before, parked={}, given_up=set()
    )


def test_to_try_a_game_again_tries_no_game_whose_name_begins_alike() -> None:
    wishes = Wishes("light", given_up={"evaluator:Pong", "evaluator:Pong-2"})
    wishes.try_again("Pong")
    assert wishes.given_up == {"evaluator:Pong-2"}
