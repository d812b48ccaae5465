"""Rates that people read: growth over the last seconds, and 0 soon after work has stopped."""

from __future__ import annotations

import pytest

from rl_cluster.cluster.reporting import Rate


def test_a_rate_is_the_growth_of_the_last_ten_seconds() -> None:
    rate = Rate()
    assert rate.per_second == 0.0
    for second in range(30):
        rate.add(float(second), 5.0 * second if second < 15 else 75.0 + 8.0 * (second - 15))
    assert rate.per_second == pytest.approx(8.0)


def test_a_counter_that_goes_back_begins_anew() -> None:
    """A learner that died goes on from its last checkpoint."""
    rate = Rate()
    for second, value in enumerate((1_000.0, 1_010.0, 900.0, 904.0)):
        rate.add(float(second), value)
    assert rate.per_second == pytest.approx(4.0)


def test_whose_turn_is_over_has_a_rate_of_nothing_within_seconds() -> None:
    """A queued task's last rate would stand there until its next slice."""
    rate = Rate()
    rate.hold(0.0)
    assert rate.per_second == 0.0
    for second in range(10):
        rate.add(float(second), 100.0 * second)
    assert rate.per_second == pytest.approx(100.0)
    for second in range(10, 22):
        rate.hold(float(second))
    assert rate.per_second == 0.0
