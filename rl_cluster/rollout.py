"""The rollout: steps many environments with one policy and cuts what happens into blocks.

Invariant: acting never waits for weights. Between two batches it asks a callable for newer ones and
goes on with those it has when there are none. Every row records the version that chose its action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_cluster import exploration
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.frame_stack import FrameStack
from rl_cluster.replay.block import Block, BlockBuilder

if TYPE_CHECKING:
    from envs.base import AsyncVectorEnv, Steps
    from rl_cluster.agents.policy import GreedyPolicy

NewWeights = Callable[[], "tuple[int, np.ndarray] | None"]
"""Newer weights (version, flat vector) if they are here already; must not block."""


@dataclass(frozen=True)
class FinishedGame:
    """A whole game that ended during collection."""

    true_return: float
    """Sum of unclipped rewards over all its lives."""
    env_steps: int


@dataclass(frozen=True)
class CollectReport:
    """What happened during one call of `collect`."""

    games: tuple[FinishedGame, ...]
    epsilon_mean: float | None
    """None where nobody explores by ε."""


@dataclass(frozen=True)
class RolloutSettings:
    """How one rollout cuts and explores."""

    name: str
    block_length: int
    frame_stack: int
    n_step: int
    ladder: np.ndarray
    """(num_envs,) final ε of each environment."""
    warm_up_env_steps: int
    exploration_env_steps: int


@dataclass(frozen=True)
class RolloutState:
    """Everything that a rollout's next blocks follow from, between two calls of `collect`."""

    values: dict[str, Any]
    """JSON."""
    arrays: dict[str, np.ndarray]
    """By name."""


class Rollout:
    """Environments, policy and block builders of one actor."""

    def __init__(
        self,
        env: AsyncVectorEnv,
        spec: EnvironmentSpec,
        policy: GreedyPolicy,
        new_weights: NewWeights,
        settings: RolloutSettings,
        rng: np.random.Generator,
    ) -> None:
        self._env, self._policy, self._new_weights = env, policy, new_weights
        self._settings, self._rng, self._num_actions = settings, rng, spec.num_actions
        self._stacks = FrameStack(
            env.num_envs, settings.frame_stack, spec.obs_shape, spec.obs_dtype
        )
        self._builders = [self._builder(i) for i in range(env.num_envs)]
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._epsilon = np.ones(env.num_envs)
        self._version = -1
        self._sealed: list[Block] = []
        self._games: list[FinishedGame] = []
        env.async_reset()

    def collect(self, num_blocks: int, task_env_steps: int) -> tuple[list[Block], CollectReport]:
        """Step until `num_blocks` blocks are sealed.

        Args:
          num_blocks: blocks to return; what else was sealed meanwhile comes first next time.
          task_env_steps: steps of the whole task so far, which set ε.
        """
        self._games = []
        settings = self._settings
        self._epsilon = exploration.annealed(
            settings.ladder,
            task_env_steps,
            settings.warm_up_env_steps,
            settings.exploration_env_steps,
        )
        while len(self._sealed) < num_blocks:
            self._take_newer_weights()
            self._step()
        blocks, self._sealed = self._sealed[:num_blocks], self._sealed[num_blocks:]
        return blocks, CollectReport(tuple(self._games), float(self._epsilon.mean()))

    def explore(self, ladder: np.ndarray) -> None:
        """Take (num_envs,) other final ε from the next `collect` on."""
        self._settings = replace(self._settings, ladder=ladder)

    def state(self) -> RolloutState:
        """What an exact resume needs: games, stacks, rows not yet sealed, weights, random draws.

        Raises:
          NotImplementedError: the environment cannot save its games; a resume starts new ones.
        """
        arrays = {f"env.{name}": array for name, array in self._env.state().items()}
        counters = []
        for i, builder in enumerate(self._builders):
            own, rows = builder.state()
            counters.append(own)
            arrays |= {f"builder.{i}.{name}": array for name, array in rows.items()}
        sealed = []
        for i, block in enumerate(self._sealed):
            fields = vars(block).items()
            sealed.append({k: v for k, v in fields if not isinstance(v, np.ndarray)})
            arrays |= {f"sealed.{i}.{k}": v for k, v in fields if isinstance(v, np.ndarray)}
        arrays |= {"stacks": self._stacks.stacks.copy(), "weights": self._policy.weights()}
        arrays |= {"returns": self._returns.copy(), "lengths": self._lengths.copy()}
        values = {"builders": counters, "sealed": sealed, "version": self._version}
        return RolloutState({**values, "rng": self._rng.bit_generator.state}, arrays)

    def restore(self, state: RolloutState) -> None:
        """Go on as the rollout that `state` was taken from, made with the same settings.

        Raises:
          NotImplementedError: the environment cannot go on with saved games.
        """
        values, arrays = state.values, state.arrays
        self._env.restore(_below("env", arrays))
        for i, (builder, counters) in enumerate(
            zip(self._builders, values["builders"], strict=True)
        ):
            builder.restore(counters, _below(f"builder.{i}", arrays))
        self._sealed = [
            Block(**{**fields, **_below(f"sealed.{i}", arrays)})
            for i, fields in enumerate(values["sealed"])
        ]
        self._stacks.stacks[:] = arrays["stacks"]
        self._returns[:], self._lengths[:] = arrays["returns"], arrays["lengths"]
        self._policy.load(arrays["weights"])
        self._version = int(values["version"])
        self._rng.bit_generator.state = values["rng"]

    def _step(self) -> None:
        steps = self._env.recv()
        stacks = self._stacks.push(steps.env_ids, steps.observations, steps.first)
        actions = exploration.epsilon_greedy(
            self._policy.actions(stacks),
            self._epsilon[steps.env_ids],
            self._num_actions,
            self._rng,
        )
        self._env.send(actions, steps.env_ids)
        self._record(steps, stacks[:, -1], actions)

    def _record(self, steps: Steps, observations: np.ndarray, actions: np.ndarray) -> None:
        """Append rows; `observations` are copies that stay valid after `send`."""
        ids = steps.env_ids
        self._returns[ids] += steps.rewards
        self._lengths[ids] += ~steps.first
        for i, env_id in enumerate(ids.tolist()):
            block = self._builders[env_id].append(
                observations[i],
                int(actions[i]),
                float(steps.rewards[i]),
                terminated=bool(steps.terminated[i]),
                truncated=bool(steps.truncated[i]),
                first=bool(steps.first[i]),
                policy_version=self._version,
            )
            if block is not None:
                self._sealed.append(block)
        for env_id in ids[steps.game_over].tolist():
            self._games.append(
                FinishedGame(float(self._returns[env_id]), int(self._lengths[env_id]))
            )
            self._returns[env_id], self._lengths[env_id] = 0.0, 0

    def _take_newer_weights(self) -> None:
        newer = self._new_weights()
        if newer is not None:
            self._policy.load(newer[1])
            self._version = newer[0]

    def _builder(self, env_id: int) -> BlockBuilder:
        """First blocks differ in length, so that builders do not all seal at once."""
        settings, num_envs = self._settings, len(self._settings.ladder)
        return BlockBuilder(
            f"{settings.name}/env/{env_id}",
            length=settings.block_length,
            context=settings.frame_stack - 1,
            tail=settings.n_step,
            first_length=max(1, settings.block_length * (env_id + 1) // num_envs),
        )


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is named `prefix.…`, by the rest of its name."""
    start = f"{prefix}."
    return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
