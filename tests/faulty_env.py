"""Catch, until it breaks: an environment that raises after a number of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs import catch
from envs.base import AsyncVectorEnv


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None,
    seeds: int | Sequence[int],
    threads: int,
    breaks_after: int,
) -> AsyncVectorEnv:
    """A game whose `send` raises from its `breaks_after`-th call on."""
    env = catch.make(name, num_envs=num_envs, batch_size=batch_size, seeds=seeds, threads=threads)
    send, calls = env.send, iter(range(breaks_after))

    def send_or_break(actions: np.ndarray, env_ids: np.ndarray) -> None:
        if next(calls, None) is None:
            raise RuntimeError("the game broke")
        send(actions, env_ids)

    env.send = send_or_break  # type: ignore[method-assign]
    return env
