"""Troubles that last: told when they begin, at growing intervals, and when they are over."""

from __future__ import annotations

import numpy as np
import pytest

from rl_cluster.supervision.recurrence import Recurrence

WEEK_S = 7 * 86_400.0


def failed(told: Recurrence, now_s: float, nature: str = "28", worker: str = "learner:A") -> bool:
    return told.is_news(worker, "checkpoint_failed", nature, now_s)


def resumed(told: Recurrence, now_s: float, worker: str = "learner:A") -> bool:
    return told.is_news(worker, "checkpoint_resumed", "", now_s)


def test_a_trouble_that_lasts_is_told_at_growing_intervals() -> None:
    told = Recurrence()
    times_s = [now_s for now_s in np.arange(0.0, 4_000.0, 20.0) if failed(told, now_s)]
    assert times_s == [0.0, 60.0, 180.0, 420.0, 900.0, 1_860.0, 3_780.0]


def test_its_end_is_told_once_and_nothing_ends_that_did_not_begin() -> None:
    told = Recurrence()
    assert not resumed(told, 0.0)
    assert failed(told, 10.0)
    assert resumed(told, 20.0)
    assert not resumed(told, 30.0)


def test_another_cause_is_news() -> None:
    told = Recurrence()
    assert failed(told, 0.0, "28")
    assert failed(told, 1.0, "5")
    assert not failed(told, 2.0, "28")
    assert not failed(told, 3.0, "5")


def test_workers_and_kinds_are_told_apart() -> None:
    told = Recurrence()
    assert failed(told, 0.0)
    assert failed(told, 1.0, worker="learner:B")
    assert told.is_news("learner:A", "batch_skipped", "", 2.0)
    assert told.is_news("learner:A", "batches_finite", "", 3.0)
    assert resumed(told, 4.0)


@pytest.mark.parametrize("kind", ["journal_paused", "gpu_fallback", "worse_than_random"])
def test_what_its_worker_tells_only_once_is_always_news(kind: str) -> None:
    told = Recurrence()
    assert all(told.is_news("replay:A", kind, "", now_s) for now_s in (0.0, 0.1, 0.2))


def test_a_trouble_that_comes_and_goes_for_weeks_is_told_some_times_a_day() -> None:
    """A disk at its brim: every second save fails."""
    told, lines = Recurrence(), 0
    for save in range(int(4 * WEEK_S / 20.0)):
        now_s = 20.0 * save
        lines += failed(told, now_s) if save % 2 else resumed(told, now_s)
    assert lines <= 2 * (10 + 4 * 7 * 4)


def test_after_a_day_without_it_a_trouble_is_a_new_one() -> None:
    told = Recurrence()
    for now_s in np.arange(0.0, WEEK_S, 20.0):
        failed(told, now_s)
    assert resumed(told, WEEK_S)
    begins_s = WEEK_S + 2 * 86_400.0
    assert failed(told, begins_s)
    assert not failed(told, begins_s + 59.0)
    assert failed(told, begins_s + 60.0)
