"""Published Atari scores: what a random policy and a human tester make in each of 57 games.

Invariant: the numbers are the published ones (`data/atari-scores.csv`: Mnih et al. 2015, extended
data table 2; Wang et al. 2016), never our own measurements, so that normalized scores compare with
the literature.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PublishedScores:
    """Mean unclipped returns of whole games, in points."""

    random: float
    human: float


def published_scores(game: str) -> PublishedScores | None:
    """The published scores of `game`, by its usual name ("MsPacman"); None if it has none."""
    return _table().get(game)


def human_normalized(game: str, score: float) -> float | None:
    """`(score - random) / (human - random)`: 0 is random play, 1 the human tester.

    From Mnih et al. 2015 (there in percent). None for a game that is not in the table.
    """
    published = published_scores(game)
    if published is None:
        return None
    return (score - published.random) / (published.human - published.random)


@cache
def _table() -> dict[str, PublishedScores]:
    text = (resources.files("rl_cluster") / "data" / "atari-scores.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["game"]: PublishedScores(random=float(row["random"]), human=float(row["human"]))
        for row in rows
    }
