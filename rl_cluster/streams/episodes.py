"""Episodes of a rover, put together from the messages that hold their parts.

Invariant: a finished episode has the sum of all its rewards, or is none: parts that are missing, or
an evaluation that began within it, leave it without a return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended, and its return."""

    rover: str
    total_reward: float
    """Undiscounted."""
    steps: int
    is_eval: bool
    policy_version: int | None
    """None: it changed on the way, or the rover names none."""
    whole: bool
    """Nothing is missing, by the sequence numbers; False: the rover sends none, so that nobody can
    know, and several nameless rovers look like one."""


@dataclass
class Episode:
    """A running episode, as far as it is here."""

    partial: bool = False
    """Some of it is missing."""
    certain: bool = True
    """Sequence numbers say so far that nothing is."""
    steps: int = 0
    eval_steps: int = 0
    total_reward: float = 0.0
    policy_version: int | None = None
    mixed: bool = False
    """More than one policy drove."""

    def add(self, rewards: np.ndarray, is_eval: np.ndarray, policy_version: int | None) -> None:
        """Its next steps."""
        if len(rewards) == 0:
            return
        self.mixed |= self.steps > 0 and policy_version != self.policy_version
        self.policy_version = policy_version
        self.steps += len(rewards)
        self.eval_steps += int(is_eval.sum())
        self.total_reward += float(rewards.sum(dtype=np.float64))

    def finished(self, rover: str) -> FinishedEpisode | None:
        """What it was; None where its return is not known."""
        if self.partial or self.eval_steps not in (0, self.steps):
            return None
        return FinishedEpisode(
            rover,
            self.total_reward,
            self.steps,
            self.eval_steps > 0,
            None if self.mixed else self.policy_version,
            self.certain,
        )
