"""The statistics of groups of runs are those of the paper, checked against naive ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_cluster.statistics import (
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
)

SCORE = st.integers(-50, 50).map(lambda whole: whole / 4)
RUNS = st.lists(SCORE, min_size=1, max_size=6)
TASKS = st.lists(RUNS, min_size=1, max_size=4)
PAIRED = st.integers(1, 4).flatmap(
    lambda tasks: st.tuples(*[st.lists(RUNS, min_size=tasks, max_size=tasks)] * 2)
)


def naive_interquartile_mean(tasks: list[list[float]]) -> float:
    left = sorted(score for runs in tasks for score in runs)
    for _ in range(len(left) // 4):
        left.remove(max(left))
        left.remove(min(left))
    return sum(left) / len(left)


def naive_probability(xs: list[list[float]], ys: list[list[float]]) -> float:
    chances = []
    for x, y in zip(xs, ys, strict=True):
        points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(x, y)]
        chances.append(sum(points) / len(points))
    return sum(chances) / len(chances)


@given(TASKS)
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(tasks: list[list[float]]) -> None:
    assert interquartile_mean(tasks) == pytest.approx(naive_interquartile_mean(tasks))


@given(TASKS, st.sampled_from([1e3, 1e6]))
def test_one_run_of_four_that_runs_away_does_not_move_it(
    tasks: list[list[float]], far: float
) -> None:
    scores = [score for runs in tasks for score in runs]
    cut = len(scores) // 4
    if cut:
        highest = sorted(scores)
        highest[-cut:] = [far] * cut
        assert interquartile_mean([highest]) == pytest.approx(interquartile_mean(tasks))


@given(PAIRED)
def test_the_probability_of_improvement_counts_pairs(
    groups: tuple[list[list[float]], list[list[float]]],
) -> None:
    xs, ys = groups
    assert probability_of_improvement(xs, ys) == pytest.approx(naive_probability(xs, ys))


@given(PAIRED)
def test_one_of_two_groups_improves_on_the_other(
    groups: tuple[list[list[float]], list[list[float]]],
) -> None:
    xs, ys = groups
    both = probability_of_improvement(xs, ys) + probability_of_improvement(ys, xs)
    assert both == pytest.approx(1.0)


@settings(max_examples=25)
@given(TASKS, st.integers(0, 9))
def test_an_interval_holds_no_value_beyond_what_the_runs_can_give(
    tasks: list[list[float]], seed: int
) -> None:
    interval = bootstrap_interval(tasks, interquartile_mean, resamples=50, seed=seed)
    again = bootstrap_interval(tasks, interquartile_mean, resamples=50, seed=seed)
    assert interval == again
    if any(len(runs) == 1 for runs in tasks):
        assert interval is None
    else:
        assert interval is not None
        scores = [score for runs in tasks for score in runs]
        assert min(scores) <= interval.low <= interval.high <= max(scores)


def test_every_task_is_resampled_by_itself() -> None:
    """A resample that mixed tasks would leave the first of them with scores of the second."""
    seen: list[list[np.ndarray]] = []
    bootstrap_interval(
        [[1.0, 2.0, 3.0], [100.0, 200.0]],
        lambda strata: seen.append(list(strata)) or 0.0,  # type: ignore[func-returns-value]
        resamples=200,
    )
    assert {(len(first), len(second)) for first, second in seen} == {(3, 2)}
    assert {score for first, _ in seen for score in first} == {1.0, 2.0, 3.0}
    assert {score for _, second in seen for score in second} == {100.0, 200.0}
    assert len({tuple(first) for first, _ in seen}) > 1, "drawn with replacement"


def test_the_interval_of_a_mean_is_as_wide_as_theory_has_it() -> None:
    """Over 400 runs, the percentile interval of a mean is ± 1.96 standard errors."""
    runs = np.random.default_rng(0).normal(5.0, 2.0, 400)
    interval = bootstrap_interval([runs], lambda strata: float(strata[0].mean()))
    assert interval is not None
    half_width = 1.96 * runs.std() / 20
    assert interval.low == pytest.approx(runs.mean() - half_width, abs=0.03)
    assert interval.high == pytest.approx(runs.mean() + half_width, abs=0.03)


def test_one_run_beside_several_has_no_interval() -> None:
    """Drawn again and again, the one run would be the same each time: as if without doubt."""
    assert bootstrap_interval([[1.0, 2.0, 3.0], [0.5]], interquartile_mean) is None
    assert bootstrap_interval([[0.5], [1.0, 2.0, 3.0]], interquartile_mean) is None


def test_scores_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean([])
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean([[1.0], []])
    with pytest.raises(ValueError, match="not finite"):
        interquartile_mean([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="shorter|longer"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_interval([[1.0, 2.0]], interquartile_mean, confidence=95)
