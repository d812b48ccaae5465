"""How far apart: the first at once, the next ones ever later, and never more than the bound."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.supervision.spacing import Spacing

GAP_S, LONGEST_S, CALM_S = 20.0, 600.0, 1800.0


def done_s(asked_s: list[float]) -> list[float]:
    """When each is done that stays asked for until then."""
    spacing, now_s = Spacing(GAP_S, LONGEST_S, CALM_S), 0.0
    done = []
    for at_s in sorted(asked_s):
        now_s = max(now_s, at_s)
        now_s += spacing.wait_s(now_s)
        assert spacing.wait_s(now_s) == pytest.approx(0.0, abs=1e-6)
        spacing.done(now_s)
        done.append(now_s)
    return done


def test_who_asks_again_and_again_waits_twice_as_long_each_time() -> None:
    gaps_s = [b - a for a, b in pairwise(done_s([0.0] * 9))]
    assert gaps_s == [20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0]


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60))
def test_however_it_is_asked_for_the_gaps_hold(asked_s: list[float]) -> None:
    done = done_s(asked_s)
    assert done[0] == min(asked_s), "the first is done at once"
    assert all(b - a >= GAP_S - 1e-6 for a, b in pairwise(done))
    # Five doublings after a calm, and then the longest gap.
    busy = [(a, b) for a, b in zip(done, done[6:], strict=False) if b - a < CALM_S]
    assert all(b - a >= LONGEST_S - 1e-6 for a, b in busy)


def test_after_a_calm_the_next_is_as_the_first() -> None:
    start_s = done_s([0.0] * 5)[-1] + CALM_S + 1
    done = done_s([*[0.0] * 5, *[start_s] * 2])
    assert done[5:] == [start_s, start_s + GAP_S]
