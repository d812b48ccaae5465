"""Catch at a player's pace, so that a run of it costs its overhead and hardly anything else.

Invariant: an actor's environments deliver their rows at most `STEPS_PER_S` times a second, however
many games a machine holds; waiting for the next row takes no CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from envs.base import Layout, Rows
from envs.catch import Catch

STEPS_PER_S = 15.0
"""What a person sees of Atari: 60 frames a second, four to a step."""


class PacedCatch(Catch):
    """Catch whose rows come when they are due."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._due_s = time.monotonic()

    def _collect(self) -> Rows:
        now_s = time.monotonic()
        # A player who was held back does not hurry afterwards.
        self._due_s = max(now_s, self._due_s + 1 / STEPS_PER_S)
        time.sleep(self._due_s - now_s)
        return super()._collect()


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
) -> PacedCatch:
    """Make `num_envs` games, with the arguments of every entry; name and threads change nothing."""
    return PacedCatch(Layout.checked(num_envs, batch_size, seeds, threads))
