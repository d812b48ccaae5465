"""How good a rover's policy is: whole episodes in the simulator, from fixed starts.

Invariant: as for games, a result holds one whole episode per rover, or there is none; and every
policy starts from the same seeds, so two results differ by their policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rl_cluster.evaluation import GameResults

if TYPE_CHECKING:
    from envs.base import AsyncVectorEnv

Memory = tuple[np.ndarray, np.ndarray]
"""(n, 256) float32 hx and cx."""

RoverPolicy = Callable[[np.ndarray, Memory], tuple[np.ndarray, Memory]]
"""(n, ROW) float32 observations and the memory to (n, 2) actions and the memory after them."""

_MEMORY = 256
_STEPS_PER_MINUTE = 30 * 60
"""Rovers decide 30 times a second."""


@dataclass(frozen=True)
class Drive:
    """Whole episodes of one policy."""

    results: GameResults
    collisions_per_min: float
    ground_m2_per_min: float
    """Newly cleared."""


def drive(env: AsyncVectorEnv, policy: RoverPolicy, *, on_step: Callable[[], object]) -> Drive:
    """Drive one whole episode with each rover of a fresh `env`, which tells collisions and ground.

    Args:
      env: n rovers; those whose episode is over stand still, and what they do is not counted.
      policy: gets all rovers' observations; memory starts at zero.
      on_step: called after each step.
    """
    n = env.num_envs
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    driving, done = np.ones(n, np.bool_), np.zeros((n, 2))
    memory: Memory = (np.zeros((n, _MEMORY), np.float32), np.zeros((n, _MEMORY), np.float32))
    observations, _ = env.reset()
    before = _totals(env)
    while driving.any():
        actions, memory = policy(observations, memory)
        actions = np.where(driving[:, None], actions, 0.0).astype(np.float32)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * driving
        lengths += driving
        after = _totals(env)
        done += (after - before) * driving[:, None]
        before = after
        driving &= ~(terminated | truncated)
        on_step()
    minutes = lengths.sum() / _STEPS_PER_MINUTE
    collisions, ground_m2 = done.sum(0) / minutes
    return Drive(GameResults(returns, lengths), float(collisions), float(ground_m2))


def _totals(env: AsyncVectorEnv) -> np.ndarray:
    """(n, 2) collisions and cleared ground so far; zeros where the environment does not tell."""
    totals = getattr(env, "totals", None)
    if totals is None:
        return np.zeros((env.num_envs, 2))
    told = totals()
    return np.stack([told["collisions"], told["ground_m2"]], 1).astype(np.float64)


def random_tracks(seeds: Sequence[int]) -> RoverPolicy:
    """Uniformly random track commands, from a stream of its own for each rover."""
    streams = [np.random.default_rng(seed) for seed in seeds]

    def act(observations: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        actions = np.stack([stream.uniform(-1, 1, 2) for stream in streams])
        return actions.astype(np.float32), memory

    return act
