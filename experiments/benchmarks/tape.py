"""The tape: Atari frames recorded once, which every replay of B1 and B2 is fed with, for ever.

Invariant: the tape has no end. Each environment's rows close with an end of episode and begin with
a reset, so playing them again is one more episode; and every environment gives the same number of
transitions, a multiple of `CHUNK`, so that no chunk has to wrap. A transition's action is the
number of its row on the tape: whatever a replay hands out says where it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

ENVIRONMENTS = 8
STACK = 4
CHUNK = 64
"""Transitions that one iteration of B1 and B2 inserts."""
_ARRAYS = ("frames", "rewards", "terminated", "truncated", "first")


class Chunk(NamedTuple):
    """k consecutive transitions (s, a, r, s') of one environment, as an environment gives them."""

    frames: np.ndarray
    """(rows, 84, 84) uint8: all single frames that they need, each once."""
    rows_tm1: np.ndarray
    """(k, STACK) int64: places in `frames` of the stack before, oldest first."""
    rows_t: np.ndarray
    """(k, STACK) int64: places of the stack one step later."""
    actions: np.ndarray
    """(k,) int64: number of the row on the tape."""
    rewards: np.ndarray
    """(k,) float32, of this one step."""
    terminated: np.ndarray
    """(k,) bool."""
    truncated: np.ndarray
    """(k,) bool."""


@dataclass(frozen=True)
class Tape:
    """Rows of all environments, one environment after the other (see `rl_cluster.replay.block`)."""

    frames: np.ndarray
    """(rows, 84, 84) uint8, mapped from the file."""
    rewards: np.ndarray
    """(rows,) float32, arrived with the row."""
    terminated: np.ndarray
    """(rows,) bool."""
    truncated: np.ndarray
    """(rows,) bool."""
    first: np.ndarray
    """(rows,) bool: a reset observation."""

    @property
    def starts(self) -> np.ndarray:
        """(N,) int64: rows that start a transition, N / ENVIRONMENTS of each environment."""
        starts: np.ndarray = np.flatnonzero(~(self.terminated | self.truncated))
        return starts

    def play(self, heads: int) -> Iterator[list[Chunk]]:
        """Yield CHUNK transitions at a time, for ever.

        Args:
          heads: places that are read in turn, CHUNK / heads transitions each; with ENVIRONMENTS
            heads each reads one environment, with one head they come one environment after another.
        """
        starts, size = self.starts, CHUNK // heads
        episodes = np.maximum.accumulate(np.where(self.first, np.arange(len(self.first)), 0))
        per_head = len(starts) // heads
        while True:
            for at in range(0, per_head, size):
                yield [
                    self._chunk(starts[head * per_head + at :][:size], episodes)
                    for head in range(heads)
                ]

    def _chunk(self, rows: np.ndarray, episodes: np.ndarray) -> Chunk:
        stacks, next_stacks = (
            np.maximum(at[:, None] + np.arange(1 - STACK, 1), episodes[at][:, None])
            for at in (rows, rows + 1)
        )
        begin, after = int(stacks[0, 0]), rows + 1
        return Chunk(
            self.frames[begin : rows[-1] + 2], stacks - begin, next_stacks - begin, rows,
            self.rewards[after], self.terminated[after], self.truncated[after],
        )  # fmt: skip


def stacked(frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(k, STACK, 84, 84) stacks of (k, STACK) rows: a view wherever they slide by one row."""
    slides = rows[0, 0] + np.arange(len(rows))[:, None] + np.arange(STACK)
    if not np.array_equal(rows, slides):
        copies: np.ndarray = frames[rows]
        return copies
    span = frames[rows[0, 0] : rows[-1, -1] + 1]
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(span, STACK, axis=0), -1, 1)


def load(directory: Path) -> Tape:
    """Map a recorded tape; all processes that do share its memory."""
    mapped = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
    return Tape(*map(np.asarray, mapped))


def recorded(scratch: Path) -> Path:
    """Return the tape's directory below `scratch`; record it where it is not there yet."""
    directory = scratch / "tape"
    if not directory.exists():
        _record(directory)
    return directory


def _record(directory: Path, rows: int = 4_096, seed: int = 0) -> None:
    """Record `rows` rows of each of ENVIRONMENTS games of Pong, played at random."""
    from envs import atari  # peers' environments have no EnvPool

    env = atari.make("Pong", num_envs=ENVIRONMENTS, seeds=seed)
    rng = np.random.default_rng(seed)
    env.async_reset()
    steps = []
    for _ in range(rows):
        came = env.recv()
        order = np.argsort(came.env_ids)
        columns = (
            came.observations, came.rewards, came.terminated, came.truncated, came.first,
        )  # fmt: skip
        steps.append([np.array(column[order]) for column in columns])
        env.send(rng.integers(0, 6, ENVIRONMENTS), came.env_ids)
    env.close()
    directory.mkdir(parents=True, exist_ok=True)
    columns_by_env = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]
    for name, column in zip(_ARRAYS, _trimmed(columns_by_env), strict=True):
        np.save(directory / f"{name}.npy", column)


def _trimmed(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Cut (environments, rows, ...) columns to equal transitions, ending all episodes there."""
    _, _, terminated, truncated, _ = columns
    starts = [np.flatnonzero(~ends) for ends in (terminated | truncated)[:, :-1]]
    size = min(map(len, starts)) // CHUNK * CHUNK
    lasts = [rows[size - 1] + 1 for rows in starts]
    for env, last in enumerate(lasts):
        truncated[env, last] |= not terminated[env, last]
    return [
        np.concatenate([column[env, : last + 1] for env, last in enumerate(lasts)])
        for column in columns
    ]
