"""The contract of every environment here: rows of steps, received and sent asynchronously.

Invariant: each environment delivers exactly one row per action (and one row for the start);
after a row that ended (`terminated` or `truncated`) its next row is `first`, and only then.
The bookkeeping for this is written once, here; a backend only computes rows.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
EnvIds = NDArray[np.int64]
MAX_SEED = 2**31 - 1


class Rows(NamedTuple):
    """What a backend computes for `b` environments: `Steps` without `first`."""

    env_ids: EnvIds
    observations: Array
    rewards: NDArray[np.float32]
    terminated: Bools
    truncated: Bools
    game_over: Bools


@dataclass(frozen=True)
class Steps:
    """Rows of `b` different environments, as one `recv` returns them.

    The arrays are fresh memory: the receiver may keep them.

    Attributes:
        env_ids: (b,) int64.
        observations: (b, *obs_shape), one frame a row, never a stack.
        rewards: (b,) float32, unclipped; the reward that arrived with this observation.
        terminated: (b,) bool; the observation is terminal, its value is 0. With a life-loss
            protocol also at a lost life.
        truncated: (b,) bool; a time limit ended the game here: bootstrap from this observation.
        first: (b,) bool; a reset observation. The action sent before it was ignored and no
            transition leads to it.
        game_over: (b,) bool; a whole game ended at this row, by itself or by its time limit.
            Lost lives are not the end of a game. It can meet `first` in one case only: a game
            that the emulator ended, unseen, during the no-ops after a lost life.
    """

    env_ids: EnvIds
    observations: Array
    rewards: NDArray[np.float32]
    terminated: Bools
    truncated: Bools
    first: Bools
    game_over: Bools

    def check_valid(self) -> None:
        """Raise ValueError unless shapes, dtypes and flags are as documented above."""
        count = len(self.env_ids)
        columns: dict[str, tuple[Array, type]] = {
            "env_ids": (self.env_ids, np.int64),
            "rewards": (self.rewards, np.float32),
            "terminated": (self.terminated, np.bool_),
            "truncated": (self.truncated, np.bool_),
            "first": (self.first, np.bool_),
            "game_over": (self.game_over, np.bool_),
        }
        for name, (column, dtype) in columns.items():
            if column.shape != (count,) or column.dtype != dtype:
                raise ValueError(
                    f"Steps.{name} is {column.dtype} {column.shape}, want {np.dtype(dtype)} "
                    f"({count},)"
                )
        if len(self.observations) != count:
            raise ValueError(f"{len(self.observations)} observations for {count} env_ids")
        if len(np.unique(self.env_ids)) != count:
            raise ValueError(f"an environment appears twice in env_ids {self.env_ids}")
        self._check_flags()

    def _check_flags(self) -> None:
        ended = self.terminated | self.truncated
        if (self.terminated & self.truncated).any():
            raise ValueError("a row is both terminated and truncated")
        if (self.first & ended).any():
            raise ValueError("a reset row (first) is terminated or truncated")
        if (self.game_over & ~ended & ~self.first).any():
            raise ValueError("a game is over at a row that neither ended nor starts a game")
        if (self.truncated & ~self.game_over).any():
            raise ValueError("a truncated row does not end its game")
        if self.rewards[self.first].any():
            raise ValueError("a reset row (first) has a reward")


@dataclass(frozen=True)
class Layout:
    """How many environments, in batches of how many rows, from which seeds, on which threads.

    Attributes:
        num_envs: environments.
        batch_size: rows one `recv` returns, within 1..num_envs.
        seeds: one per environment, each within 0..2^31-1.
        threads: emulator threads; 0 is the backend's default.
    """

    num_envs: int
    batch_size: int
    seeds: list[int]
    threads: int

    @classmethod
    def checked(
        cls, num_envs: int, batch_size: int | None, seeds: int | Sequence[int], threads: int
    ) -> Layout:
        """Fill in the defaults, as the `make` functions document them; ValueError if impossible."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        size = num_envs if batch_size is None else batch_size
        if not 1 <= size <= num_envs:
            raise ValueError(f"batch_size must be within 1..num_envs ({num_envs}), got {size}")
        if threads < 0:
            raise ValueError(f"threads must be 0 (the default) or more, got {threads}")
        return cls(num_envs, size, expand_seeds(seeds, num_envs), threads)


class AsyncVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` copies of one environment; `recv` returns the first `batch_size` ready ones.

    Use `async_reset`, then `recv` and `send` in turn. With `batch_size == num_envs` Gymnasium's
    `reset` and `step` work too (next-step autoreset).

    Attributes:
        batch_size: rows that one `recv` returns.
        single_observation_space: of ONE frame, e.g. uint8 (84, 84).
        single_action_space: of one environment.
        frame_skip: emulator frames in one environment step (1 where nothing is skipped).
        config: what the backend was built with, under the backend's own names.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        *,
        layout: Layout,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        frame_skip: int = 1,
        config: Mapping[str, Any],
    ) -> None:
        num_envs = layout.num_envs
        self.num_envs = num_envs
        self.batch_size = layout.batch_size
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.frame_skip = frame_skip
        self.config = dict(config)
        self._in_flight = 0
        self._awaits_action = np.zeros(num_envs, dtype=bool)
        self._ended = np.ones(num_envs, dtype=bool)

    @abstractmethod
    def _start(self) -> None:
        """Begin a new game in every environment; `_collect` delivers the first rows."""

    @abstractmethod
    def _collect(self) -> Rows:
        """Block until `batch_size` rows are ready; in order of id if that is all of them."""

    @abstractmethod
    def _dispatch(self, actions: Array, env_ids: EnvIds) -> None:
        """Step these environments (actions and ids are checked); return without waiting."""

    @abstractmethod
    def _reseed(self, seeds: Sequence[int]) -> None:
        """Take new seeds, one per environment, that hold from the next `_start`."""

    def _state(self) -> dict[str, Array]:
        """What the backend's next rows follow from; not every backend can tell."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot save its games: after a resume they start anew"
        )

    def _restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `_state` told."""
        raise NotImplementedError(f"{type(self).__name__} cannot go on with saved games")

    def state(self) -> dict[str, Array]:
        """Copies of everything that the next rows follow from, by name, for an exact resume.

        Raises:
            NotImplementedError: the backend keeps its games to itself.
        """
        self._require_open()
        return {
            **{f"backend.{name}": array.copy() for name, array in self._state().items()},
            "in_flight": np.array(self._in_flight),
            "awaits_action": self._awaits_action.copy(),
            "ended": self._ended.copy(),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on as the environment that `state` was taken from, made with the same arguments.

        Raises:
            NotImplementedError: the backend cannot.
        """
        self._require_open()
        prefix = "backend."
        own = {key[len(prefix) :]: v.copy() for key, v in state.items() if key.startswith(prefix)}
        self._restore(own)
        self._in_flight = int(state["in_flight"])
        self._awaits_action[:] = state["awaits_action"]
        self._ended[:] = state["ended"]

    def async_reset(self) -> None:
        """Start a new game in every environment; `recv` then delivers their first rows.

        Raises:
            RuntimeError: if rows are still being computed.
        """
        self._require_open()
        if self._in_flight:
            raise RuntimeError(
                f"async_reset() while {self._in_flight} rows are still being computed: "
                "recv() them first, or make a new environment"
            )
        self._ended[:] = True
        self._awaits_action[:] = False
        self._in_flight = self.num_envs
        self._start()

    def recv(self) -> Steps:
        """Wait for `batch_size` rows and return them.

        Raises:
            RuntimeError: if too few environments are running for a batch ever to be ready.
        """
        self._require_open()
        if self._in_flight < self.batch_size:
            raise RuntimeError(
                f"recv() would wait for ever: {self._in_flight} environments are running and "
                f"batch_size is {self.batch_size}; call async_reset() or send() first"
            )
        rows = self._collect()
        first = self._ended[rows.env_ids]
        self._ended[rows.env_ids] = rows.terminated | rows.truncated
        self._awaits_action[rows.env_ids] = True
        self._in_flight -= len(rows.env_ids)
        return Steps(first=first, **rows._asdict())

    def send(self, actions: Array, env_ids: Array) -> None:
        """Act in environments whose row was received; returns at once.

        Args:
            actions: (n,) integers for a discrete space, (n, *shape) for a box. The action for
                an environment that ended is ignored: its next row is `first`.
            env_ids: (n,) integers, in any order.

        Raises:
            ValueError: for an action outside the space, or an environment that awaits none.
        """
        self._require_open()
        ids = np.asarray(env_ids, dtype=np.int64)
        checked = self._checked_actions(np.asarray(actions), len(ids))
        waiting = int(self._awaits_action.sum())
        known = bool(((ids >= 0) & (ids < self.num_envs)).all())
        if not known or not self._awaits_action[ids].all() or len(np.unique(ids)) != len(ids):
            raise ValueError(
                f"env_ids {ids} must be different environments among the {waiting} whose row "
                "was received and that await an action"
            )
        self._awaits_action[ids] = False
        self._in_flight += len(ids)
        self._dispatch(checked, ids)

    def _checked_actions(self, actions: Array, count: int) -> Array:
        shape = (count, *(self.single_action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions have shape {actions.shape}, want {shape}")
        space = self.single_action_space
        if not isinstance(space, spaces.Discrete):
            return actions
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype}, want integers")
        # The emulators index a table with the action unchecked.
        if count and (actions.min() < 0 or actions.max() >= space.n):
            raise ValueError(f"actions {actions} are not all within 0..{space.n - 1}")
        return actions

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Gymnasium's `reset`: observations (num_envs, *obs_shape) and infos.

        A `seed` (int: environment i gets seed + i; or one each) restarts every random stream;
        None lets them run on. Needs `batch_size == num_envs`; takes no options.
        """
        self._require_whole_batch("reset")
        if options:
            raise ValueError(f"reset() takes no options, got {options}")
        if seed is not None:
            self._reseed(expand_seeds(seed, self.num_envs))
        self.async_reset()
        steps = self.recv()
        return steps.observations, _infos(steps)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Gymnasium's `step`, with next-step autoreset; infos tell `first` and `game_over`.

        Needs `batch_size == num_envs`. Shapes: (num_envs, *obs_shape), then (num_envs,) each.
        """
        self._require_whole_batch("step")
        self.send(actions, np.arange(self.num_envs))
        steps = self.recv()
        return (
            steps.observations,
            steps.rewards,
            steps.terminated,
            steps.truncated,
            _infos(steps),
        )

    def _require_whole_batch(self, method: str) -> None:
        if self.batch_size != self.num_envs:
            raise RuntimeError(
                f"{method}() needs batch_size == num_envs, got {self.batch_size} and "
                f"{self.num_envs}; use async_reset(), recv() and send()"
            )

    def _require_open(self) -> None:
        if self.closed:
            raise RuntimeError("the environment is closed")


def _infos(steps: Steps) -> dict[str, Any]:
    return {"first": steps.first, "game_over": steps.game_over}


def expand_seeds(seeds: int | Sequence[int | None], num_envs: int) -> list[int]:
    """One seed per environment: an int `s` means s, s+1, ...; ValueError outside 0..2^31-1."""
    if isinstance(seeds, int | np.integer):
        each = [int(seeds) + i for i in range(num_envs)]
    else:
        each = [-1 if seed is None else int(seed) for seed in seeds]
    if len(each) != num_envs:
        raise ValueError(
            f"{len(each)} seeds for {num_envs} environments; give one int, or one each"
        )
    if not all(0 <= seed <= MAX_SEED for seed in each):
        raise ValueError(f"seeds must be integers within 0..{MAX_SEED}, got {seeds}")
    return each


def nearest_names(name: str, known: Iterable[str]) -> str:
    """The up to three known names nearest to `name`, for the end of an error message."""
    by_key = {_key(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.4)
    names = [by_key[key] for key in close] or sorted(by_key.values())
    return f"nearest: {', '.join(names)}" if close else f"known: {', '.join(names)}"


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
