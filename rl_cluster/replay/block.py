"""Blocks: immutable runs of consecutive rows of ONE environment, stored as single observations.

Row k holds what arrived with observation k (`rewards[k]`, `terminated[k]`, `truncated[k]`,
`first[k]`) and what was answered to it (`actions[k]`, `policy_versions[k]`); so the step from row k
to row k + 1 is (s_k, actions[k], rewards[k + 1], s_{k + 1}), and there is no such step when row k
ended an episode. Invariant: a block's core rows start transitions, and all that such a transition
needs (the stack before it, the n steps after it) lies inside the same block: `context` rows precede
the core and `tail` rows follow it, both repeated in the neighbouring blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one environment; all arrays have context + core + tail `rows`."""

    source: str
    """Who collected it, such as `rollout/0/env/3`."""
    sequence: int
    """Number of this block at its source, from 0."""
    context: int
    """Rows before the first that starts a transition."""
    core: int
    """Rows that may start a transition."""
    observations: np.ndarray
    """(rows, *obs_shape), one frame per row."""
    actions: np.ndarray
    """(rows, *action_shape) int32 or float32, taken at the row's observation; meaningless where the
    row ended an episode."""
    rewards: np.ndarray
    """(rows,) float32, unclipped, arrived with the row's observation."""
    terminated: np.ndarray
    """(rows,) bool: nothing can be earned after this row."""
    truncated: np.ndarray
    """(rows,) bool: a limit from outside ended the episode at this row."""
    first: np.ndarray
    """(rows,) bool: a reset observation; no step leads to it."""
    policy_versions: np.ndarray
    """(rows,) int32: the policy that chose `actions`."""
    message: str = ""
    """What it was cut from, if that may arrive twice: the message's identity and the block's number
    in it. No two blocks of a replay have the same."""

    @property
    def schema(self) -> str:
        """Shape and dtype of one observation; blocks of one replay agree in it."""
        return schema_of(self.observations.shape[1:], self.observations.dtype)

    @property
    def starts(self) -> np.ndarray:
        """(core,) bool: core rows that start a transition: all but the last of an episode."""
        core = slice(self.context, self.context + self.core)
        ends: np.ndarray = self.terminated[core] | self.truncated[core]
        return ~ends

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def info(self) -> BlockInfo:
        """What an index needs to know of this block."""
        core = slice(self.context, self.context + self.core)
        return BlockInfo(
            self.source,
            self.sequence,
            self.schema,
            self.starts,
            self.policy_versions[core],
            self.nbytes,
            self.message,
        )

    def check_valid(self) -> None:
        """Raise ValueError unless the arrays agree in length and the flags in meaning."""
        rows = len(self.observations)
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray) and len(array) != rows:
                raise ValueError(f"{self.source}: {name} has {len(array)} rows, not {rows}")
        if not 0 < self.core <= rows - self.context:
            raise ValueError(f"{self.source}: core {self.core} does not fit into {rows} rows")
        ends = self.terminated | self.truncated
        if (self.terminated & self.truncated).any() or not np.array_equal(
            ends[self.context : -1], self.first[self.context + 1 :]
        ):
            raise ValueError(f"{self.source}: an end must be followed by a reset, and only an end")
        for name in ("actions", "rewards"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{self.source}: {name} are not finite")


@dataclass(frozen=True)
class BlockInfo:
    """A block without its data: what the index keeps."""

    source: str
    sequence: int
    schema: str
    starts: np.ndarray
    """(core,) bool: rows that start a transition."""
    policy_versions: np.ndarray
    """(core,) int32."""
    nbytes: int
    message: str = ""
    """As the block's."""

    @property
    def transitions(self) -> int:
        """Transitions that start in this block."""
        return int(self.starts.sum())


def schema_of(obs_shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Text form of an observation's shape and dtype, such as `uint8[84,84]`."""
    return f"{np.dtype(dtype).name}[{','.join(map(str, obs_shape))}]"


class BlockBuilder:
    """Collects one environment's rows and seals a block whenever one is full.

    Args:
      source: name of the environment. length: core rows of a block. context: frame stack - 1. tail:
      n of the n-step return. first_length: core rows of the first block; builders that differ in it
      seal at different times.
    """

    def __init__(
        self, source: str, *, length: int, context: int, tail: int, first_length: int | None = None
    ) -> None:
        self._source, self._length, self._context, self._tail = source, length, context, tail
        self._core = first_length or length
        self._sequence = 0
        self._used = 0
        self._rows: dict[str, np.ndarray] = {}

    def append(
        self,
        observation: np.ndarray,
        action: int,
        reward: float,
        *,
        terminated: bool,
        truncated: bool,
        first: bool,
        policy_version: int,
    ) -> Block | None:
        """Add a row; return the block that it completes, if any."""
        if not self._rows:
            self._start(observation)
        at, rows = self._used, self._rows
        rows["observations"][at] = observation
        rows["actions"][at] = action
        rows["rewards"][at] = reward
        rows["terminated"][at] = terminated
        rows["truncated"][at] = truncated
        rows["first"][at] = first
        rows["policy_versions"][at] = policy_version
        self._used += 1
        return self._seal() if self._used == self._context + self._core + self._tail else None

    def state(self) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        """Counters, and copies of the rows collected so far by name, for an exact resume."""
        counters = {"sequence": self._sequence, "core": self._core, "used": self._used}
        return counters, {name: array[: self._used].copy() for name, array in self._rows.items()}

    def restore(self, counters: Mapping[str, int], rows: Mapping[str, np.ndarray]) -> None:
        """Go on as the builder that `state` was taken from, made with the same arguments."""
        self._sequence, self._core = counters["sequence"], counters["core"]
        self._used, self._rows = counters["used"], {}
        if rows:
            frames = rows["observations"]
            self._rows = self._allocate(frames.shape[1:], frames.dtype)
        for name, array in self._rows.items():
            array[: self._used] = rows[name]

    def _start(self, observation: np.ndarray) -> None:
        self._rows = self._allocate(observation.shape, observation.dtype)
        self._rows["observations"][: self._context] = observation
        self._used = self._context

    def _allocate(self, obs_shape: tuple[int, ...], dtype: np.dtype) -> dict[str, np.ndarray]:
        rows = self._context + self._core + self._tail
        return {
            "observations": np.empty((rows, *obs_shape), dtype),
            "actions": np.zeros(rows, np.int32),
            "rewards": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, np.bool_),
            "truncated": np.zeros(rows, np.bool_),
            "first": np.zeros(rows, np.bool_),
            "policy_versions": np.zeros(rows, np.int32),
        }

    def _seal(self) -> Block:
        full = self._rows
        block = Block(self._source, self._sequence, self._context, self._core, **full, message="")
        self._sequence += 1
        self._core = self._length
        frames = full["observations"]
        self._rows = self._allocate(frames.shape[1:], frames.dtype)
        kept = self._context + self._tail
        for name, array in full.items():
            self._rows[name][:kept] = array[len(array) - kept :]
        self._used = kept
        return block
