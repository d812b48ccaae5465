"""Loads: how much runs, and the steps from one load to the next.

Invariant: loads are a ladder on which games and environments take turns, down to a floor of one
game with few environments: a step down lessens at least one figure and raises none, a step up the
reverse, and either way every goal is reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rl_cluster.settings import NonNegativeFloat, PositiveInt

FEW_ENVIRONMENTS = 8
"""Environments of a task that are not halved any more."""
SMALL_BATCH = 32
"""Transitions in one update that are not halved any more."""


@dataclass(frozen=True)
class Load:
    """How much runs: at most so much of each."""

    games: PositiveInt
    """Tasks that train at once."""
    environments: PositiveInt
    """Environments of each task, over all its rollouts."""
    batch: PositiveInt
    """Transitions in one update."""

    def at_most(self, bound: Load) -> Load:
        """Return the less of each."""
        return Load(
            min(self.games, bound.games),
            min(self.environments, bound.environments),
            min(self.batch, bound.batch),
        )

    def __str__(self) -> str:
        games = "1 game" if self.games == 1 else f"{self.games} games"
        return f"{games} × {self.environments} environments, batch {self.batch}"


@dataclass(frozen=True)
class Cap:
    """A bound that unclean boots left (`boots.py`)."""

    load: Load
    left_s: NonNegativeFloat
    """Seconds until it ends."""
    reason: str


def below(load: Load, games_first: bool = False) -> Load:
    """Return the load one step down: a game less, or half of environments and batch.

    In turns, so that heavy comes down by way of medium and light; at the floor (one game, few
    environments, a small batch) the load itself.

    Args:
      games_first: keep environments and batch as long as there are games to stop.
    """
    smaller = Load(
        load.games,
        _halved(load.environments, FEW_ENVIRONMENTS),
        _halved(load.batch, SMALL_BATCH),
    )
    fewer_games = games_first or smaller == load or load.games - 1 >= _doublings(load)
    return replace(load, games=load.games - 1) if load.games > 1 and fewer_games else smaller


def above(load: Load, goal: Load, games_last: bool = False) -> Load:
    """Return the load one step up towards a goal, the way that `below` came; there, itself."""
    larger = Load(
        load.games,
        _doubled(load.environments, goal.environments),
        _doubled(load.batch, goal.batch),
    )
    more_games = larger == load or (not games_last and load.games - 1 < _doublings(load))
    return replace(load, games=load.games + 1) if load.games < goal.games and more_games else larger


def _doublings(load: Load) -> float:
    """Times that few environments were doubled: as a step, each is worth one game."""
    return math.log2(load.environments / FEW_ENVIRONMENTS)


def _halved(value: int, least: int) -> int:
    return max(min(value, least), value // 2)


def _doubled(value: int, most: int) -> int:
    return max(value, min(2 * value, most))
