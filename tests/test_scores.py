"""Published scores: the table is read as published, and normalization agrees with the paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import rl_cluster
from rl_cluster.scores import human_normalized, published_scores


def games() -> list[str]:
    table = Path(rl_cluster.__file__).parent / "data" / "atari-scores.csv"
    rows = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    return [row.split(",")[0] for row in rows[1:]]


def test_the_table_has_the_57_games_with_different_finite_scores() -> None:
    assert len(set(games())) == len(games()) == 57
    for game in games():
        scores = published_scores(game)
        assert scores is not None
        assert math.isfinite(scores.random) and math.isfinite(scores.human)
        assert scores.human > scores.random


@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman", "Skiing"])
def test_the_random_policy_is_0_and_the_human_1(game: str) -> None:
    scores = published_scores(game)
    assert scores is not None
    assert human_normalized(game, scores.random) == 0.0
    assert human_normalized(game, scores.human) == 1.0


def test_a_normalized_score_is_the_share_of_the_way_from_random_to_human() -> None:
    # Breakout: random 1.7, human 30.5; the DQN of Mnih et al. 2015 made 401.2.
    assert human_normalized("Breakout", 401.2) == pytest.approx(399.5 / 28.8)
    assert human_normalized("Pong", -21.0) == pytest.approx(-0.3 / 35.3)


def test_a_game_without_published_scores_has_no_normalized_score() -> None:
    assert published_scores("Catch") is None
    assert human_normalized("Catch", 1.0) is None
