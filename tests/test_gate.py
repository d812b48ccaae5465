"""The gate: rovers keep the better policy, whatever the sign of its return."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.supervision.gate import Score, go_back_to, judge, threshold

returns = st.floats(-1e4, 1e4)
margins = st.floats(0, 2)


@given(returns, returns, margins)
def test_who_is_at_least_as_good_is_always_sent(mean: float, more: float, margin: float) -> None:
    incumbent, candidate = Score(mean, 5), Score(mean + abs(more), 5)
    assert judge(candidate, incumbent, margin).send


@given(returns, margins, st.floats(1e-3, 1e3))
def test_who_is_below_the_threshold_is_held_back_with_both_returns(
    mean: float, margin: float, below: float
) -> None:
    incumbent = Score(mean, 5)
    verdict = judge(Score(threshold(incumbent, margin) - below, 5), incumbent, margin)
    assert not verdict.send and f"{mean:.3g}" in verdict.reason


@pytest.mark.parametrize("mean", [-20.0, 0.0, 20.0])
def test_the_margin_is_a_share_and_never_of_less_than_one(mean: float) -> None:
    assert threshold(Score(mean, 5), 0.1) == pytest.approx(mean - 0.1 * max(1.0, abs(mean)))


def test_what_nobody_judged_is_sent() -> None:
    assert judge(None, Score(1.0, 5), 0.1).send and judge(Score(1.0, 5), None, 0.1).send


def test_in_the_field_a_worse_policy_goes_back_to_the_best_before_it() -> None:
    scores = {1: Score(5.0, 6), 2: Score(9.0, 6), 3: Score(2.0, 6)}
    assert go_back_to(scores, 3, 0.1, 6) == 2
    assert go_back_to(scores | {3: Score(8.9, 6)}, 3, 0.1, 6) is None


def test_in_the_field_nothing_is_judged_by_few_episodes() -> None:
    scores = {1: Score(9.0, 6), 2: Score(2.0, 5)}
    assert go_back_to(scores, 2, 0.1, 6) is None
    assert go_back_to({1: Score(9.0, 5), 2: Score(2.0, 6)}, 2, 0.1, 6) is None
    assert go_back_to({2: Score(2.0, 6)}, 2, 0.1, 6) is None
