"""EnvPool's classic control (CartPole, Acrobot, MountainCar, Pendulum): small float vectors.

Invariant: failing is `terminated`, the time limit is `truncated`; they never meet in one row.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs._envpool import EnvPoolVectorEnv, task_ids
from envs.base import AsyncVectorEnv, Layout, nearest_names


def names() -> list[str]:
    """The tasks there are, as Gymnasium names them."""
    return sorted(task for task in task_ids("envpool.classic_control") if "/" not in task)


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
    max_episode_steps: int | None = None,
) -> AsyncVectorEnv:
    """Make `num_envs` copies of a task, e.g. CartPole-v1 with observations float32 (4,).

    Args:
        name: the task (see `names`).
        num_envs: copies of the task.
        batch_size: rows one `recv` returns; None is `num_envs`.
        seeds: environment i gets `seeds + i`, or one seed each; 0..2^31-1.
        threads: EnvPool's threads; 0 is its default, min(batch_size, processors).
        max_episode_steps: the time limit in steps; None is the task's own (CartPole-v1: 500).

    Raises:
        ValueError: for an unknown task (naming the nearest) or a limit below 1.
    """
    if name not in names():
        raise ValueError(f"unknown task {name!r}; {nearest_names(name, names())}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
    options = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    layout = Layout.checked(num_envs, batch_size, seeds, threads)
    return EnvPoolVectorEnv(name, layout, options)
