"""Catch, until it breaks: it raises, ends, or hangs, after a number of steps or when it is made."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from envs import catch
from envs.base import AsyncVectorEnv

_LONG_S = 1_000


def _raise() -> None:
    raise RuntimeError("the game broke")


def _exit() -> None:
    os._exit(7)


def _hang() -> None:
    time.sleep(_LONG_S)


def _hang_with_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(_LONG_S)  # PyDLL, unlike CDLL, keeps the interpreter's lock


_FAULTS: Mapping[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": _exit,
    "hang": _hang,
    "hang_with_the_interpreter": _hang_with_the_interpreter,
}


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None,
    seeds: int | Sequence[int],
    threads: int,
    breaks_after: int | None = None,
    fault: str = "raise",
    mended_by: str = "",
) -> AsyncVectorEnv:
    """A game with a fault, in rollouts only where it breaks as it is made.

    Args:
      name: of the game, like `num_envs`, `batch_size`, `seeds` and `threads`.
      breaks_after: calls of `send` that work; None: it breaks as it is made.
      fault: raise, exit, hang, or hang_with_the_interpreter.
      mended_by: a file; while it is there, nothing breaks.
    """

    def strike() -> None:
        if not (mended_by and Path(mended_by).exists()):
            _FAULTS[fault]()

    if breaks_after is None and b"RolloutActor" in Path("/proc/self/cmdline").read_bytes():
        strike()
    env = catch.make(name, num_envs=num_envs, batch_size=batch_size, seeds=seeds, threads=threads)
    if breaks_after is None:
        return env
    send, calls = env.send, iter(range(breaks_after))

    def send_or_break(actions: np.ndarray, env_ids: np.ndarray) -> None:
        if next(calls, None) is None:
            strike()
        send(actions, env_ids)

    env.send = send_or_break  # type: ignore[method-assign]
    return env
