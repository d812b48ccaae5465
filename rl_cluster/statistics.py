"""How groups of runs compare: interquartile mean, stratified bootstrap, probability of improvement.

Definitions of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 34), as its library rliable has them. Scores are one array (runs,) per task;
tasks may have different numbers of runs. Invariant: the same scores and seed give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2_000
"""Of one bootstrap: the ends of a 95 % interval then rest on 50 resamples each."""

Strata = Sequence[np.ndarray]
"""Scores (runs,) float64 of each task."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def interquartile_mean(scores: Sequence[ArrayLike]) -> float:
    """The mean of the middle half of all scores, of all runs and tasks in one.

    IQM of section 4.3: the 25 % trimmed mean, which drops ⌊n / 4⌋ of the n scores at either end.
    Fewer than four scores lose none.

    Args:
      scores: of each task, (runs,).

    Raises:
      ValueError: there is none, or one is not finite.
    """
    flat = np.sort(np.concatenate(_checked(scores)))
    cut = len(flat) // 4
    return float(flat[cut : len(flat) - cut].mean())


def probability_of_improvement(better: Sequence[ArrayLike], worse: Sequence[ArrayLike]) -> float:
    """How likely a run of X beats one of Y on a task drawn at random: P(X > Y) of section 4.3.

    P(X > Y) = 1/M Σ_m P(X_m > Y_m), and P(X_m > Y_m) = 1/(N K) Σ_i Σ_j S(x_mi, y_mj), the
    Mann-Whitney U statistic: S is 1 where x > y, 1/2 where they are equal, else 0.

    Args:
      better: scores of X on each of the M tasks, (N,). worse: of Y on the same tasks, (K,).

    Raises:
      ValueError: the numbers of tasks differ, there is none, or a score is not finite.
    """
    pairs = zip(_checked(better), _checked(worse), strict=True)
    return float(np.mean([_wins(x, y) for x, y in pairs]))


def bootstrap_interval(
    scores: Sequence[ArrayLike],
    statistic: Callable[[Strata], float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of a statistic under the stratified bootstrap of section 4.2.

    Each resample draws, for every task by itself, as many of its runs as there are, with
    replacement. The interval lies between the (1 ± confidence) / 2 quantiles of the statistic.

    Args:
      scores: of each task, (runs,); a statistic of two groups gets the tasks of both in a row.
      statistic: of one resample, shaped as `scores`.

    Returns:
      The interval; None where a task has one run only, since nothing is known of its spread then.

    Raises:
      ValueError: there is no score, one is not finite, or `confidence` is not between 0 and 1.
    """
    strata = _checked(scores)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: a share between 0 and 1, such as 0.95")
    if any(len(stratum) < 2 for stratum in strata):
        return None
    rng = np.random.default_rng(seed)
    drawn = [
        statistic([stratum[rng.integers(len(stratum), size=len(stratum))] for stratum in strata])
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def bootstrap_band(curves: np.ndarray, *, seed: int = 0) -> np.ndarray | None:
    """The 95 % interval of the mean of some curves, at each of their points.

    As `bootstrap_interval` of one task: a run is drawn with all of its curve.

    Args:
      curves: (runs, points) float64.

    Returns:
      (2, points) float64, low and high; None for one run.
    """
    runs = len(curves)
    if runs < 2:
        return None
    drawn = np.random.default_rng(seed).integers(runs, size=(RESAMPLES, runs))
    # How often a resample has each run, times the curves: no copy of them for each resample.
    shares = np.stack([(drawn == run).mean(axis=1) for run in range(runs)], axis=1)
    return np.asarray(np.quantile(shares @ curves, [0.025, 0.975], axis=0))


def _wins(x: np.ndarray, y: np.ndarray) -> float:
    above, level = x[:, None] > y[None, :], x[:, None] == y[None, :]
    return float(above.mean() + level.mean() / 2)


def _checked(scores: Sequence[ArrayLike]) -> list[np.ndarray]:
    strata = [np.asarray(stratum, np.float64) for stratum in scores]
    if not strata or any(stratum.ndim != 1 or not len(stratum) for stratum in strata):
        raise ValueError(f"{scores!r} are no scores: give each task an array of one run or more")
    if not all(np.isfinite(stratum).all() for stratum in strata):
        raise ValueError(f"{scores!r} holds a score that is not finite: leave that run out")
    return strata
