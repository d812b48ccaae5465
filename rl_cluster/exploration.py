"""ε-greedy exploration: a ladder over environments, entered by a linear decay from 1.

Invariant: ε depends only on the configuration and on the task's environment steps, so a resumed run
explores as the interrupted one would have.
"""

from __future__ import annotations

import numpy as np


def epsilon_ladder(base: float, alpha: float, num_envs: int) -> np.ndarray:
    """(num_envs,) float64: ε_i = base^(1 + α i / (N - 1)) (Horgan et al. 2018, section 4.1)."""
    position = np.arange(num_envs) / max(1, num_envs - 1)
    return np.asarray(base ** (1 + alpha * position), np.float64)


def annealed(ladder: np.ndarray, env_steps: int, warm_up: int, decay: int) -> np.ndarray:
    """(N,) float64: 1 during warm-up, then linearly down to the ladder over `decay` steps."""
    if env_steps < warm_up:
        return np.ones_like(ladder)
    progress = min(1.0, (env_steps - warm_up) / decay) if decay else 1.0
    return np.asarray(ladder + (1 - ladder) * (1 - progress), np.float64)


def epsilon_greedy(
    greedy: np.ndarray, epsilon: np.ndarray, num_actions: int, rng: np.random.Generator
) -> np.ndarray:
    """(b,) int64: each greedy action replaced by a uniform one with its own probability ε."""
    explore = rng.random(len(greedy)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy)), greedy)
