"""An environment whose numbers are wrong now and then: NaN or Inf in rewards or observations."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import count

from envs.base import AsyncVectorEnv, Steps


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None,
    seeds: int | Sequence[int],
    threads: int,
    entry: str,
    spoils: str,
    value: float,
    every: int,
) -> AsyncVectorEnv:
    """The environment of `entry`, one row of whose every `every`-th batch is spoiled.

    Args:
      spoils: `rewards` or `observations`. value: what stands there then; JSON's NaN and Infinity.
    """
    module, _, function = entry.partition(":")
    env: AsyncVectorEnv = getattr(importlib.import_module(module), function)(
        name, num_envs=num_envs, batch_size=batch_size, seeds=seeds, threads=threads
    )
    recv, calls = env.recv, count(1)

    def recv_spoiled() -> Steps:
        steps = recv()
        if next(calls) % every == 0:
            row = int((~steps.first).argmax())
            getattr(steps, spoils)[row] = value
        return steps

    env.recv = recv_spoiled  # type: ignore[method-assign]
    return env
