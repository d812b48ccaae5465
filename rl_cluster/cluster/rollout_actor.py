"""Shell of a rollout: makes environments and policy in its own process, fetches weights, collects.

Invariant: `collect` never waits for weights; the newest version is asked for once, ahead, and taken
when it has arrived.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError

from rl_cluster import exploration
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, Ref, is_here, read
from rl_cluster.cluster.parcels import Collected, pack
from rl_cluster.cluster.placement import node_id
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.environments import make_environment, spec_of
from rl_cluster.learner import build_network
from rl_cluster.rollout import Rollout, RolloutSettings
from rl_cluster.supervision.health import Health

_LOOK_PERIOD_S = 0.01  # between two looks whether newer weights have come
_NICENESS = 5
"""A learner that has what it needs goes first; one that waits leaves the cores to its rollouts."""
_HERE_S = 10.0  # for what was seen to be here


class WeightsInbox:
    """Newer weights as they arrive: one question always open, looked at now and then."""

    def __init__(self, weights: Actor, task: str) -> None:
        self._weights, self._task = weights, task
        self.version = -1
        """Newest that is here, or on its way."""
        self._looked_s = 0.0
        self._vector: Ref | None = None
        self._question: Ref
        self.taken_bytes = 0
        """Of all vectors that were taken."""
        self._ask()

    def __call__(self) -> tuple[int, np.ndarray] | None:
        """Newest weights if they are here; never blocks."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_PERIOD_S:
            return None
        self._looked_s = now_s
        try:
            return self._take()
        except RayError:
            # The vector's owner or the actor that was asked has died: a newer version will come.
            self._ask()
            return None

    def _take(self) -> tuple[int, np.ndarray] | None:
        if self._vector is None:
            if not is_here(self._question):
                return None
            published = read(self._question, _HERE_S)
            self.version, self._vector = published.version, published.payload[0]
        if not is_here(self._vector):
            self._looked_s = 0.0  # on its way, so it is worth looking again after every step
            return None
        flat: np.ndarray = read(self._vector, _HERE_S)
        self.taken_bytes += flat.nbytes
        self._ask()
        return self.version, flat

    def _ask(self) -> None:
        self._vector = None
        self._question = self._weights.next_after.remote(self._task, self.version)


class RolloutActor:
    """Environments of one task."""

    def __init__(
        self, task: str, index: int, config: TaskConfig, seed: int, weights: Actor, epoch: int
    ) -> None:
        os.nice(_NICENESS)
        self._vitals = Vitals(epoch, "waiting")
        torch.set_num_threads(config.rollout.torch_threads)
        self._index, rollout = index, config.rollout
        self._name, self._env_steps = names.rollout_name(task, index), 0
        env_seed, action_seed = np.random.SeedSequence(seed).generate_state(2)
        env = make_environment(
            config.env,
            num_envs=rollout.environments,
            batch_size=rollout.inference_batch,
            seeds=int(env_seed % 2**30),
            threads=rollout.env_threads,
        )
        spec = spec_of(env)
        policy = GreedyPolicy(
            build_network(config.agent, spec), bfloat16=rollout.precision == "bfloat16"
        )
        settings = RolloutSettings(
            name=self._name,
            block_length=rollout.block_length,
            frame_stack=config.agent.frame_stack,
            n_step=config.agent.n_step,
            ladder=self._ladder(config),
            warm_up_env_steps=config.replay.min_transitions,
            exploration_env_steps=rollout.exploration_env_steps,
        )
        self._inbox, self._has_begun = WeightsInbox(weights, task), False
        self._node_id = node_id()

        rng = np.random.default_rng(action_seed)
        self._rollout = Rollout(env, spec, policy, self._newer_weights, settings, rng)

    def _newer_weights(self) -> tuple[int, np.ndarray] | None:
        """Asked before every step."""
        if self._has_begun:  # the step before is done
            self._vitals.progress()
        self._has_begun = True
        return self._inbox()

    @once_made
    def __repr__(self) -> str:
        """Name, state, version of its policy (-1: random) and speed."""
        speed = f"{self._vitals.per_s(self._env_steps):.0f} env steps/s"
        return self._vitals.line(self._name, f"policy {self._inbox.version}", speed)

    def collect(self, num_blocks: int, task_env_steps: int, for_node: str) -> tuple[Any, ...]:
        """Return a `Collected` and then `num_blocks` blocks, each a return value of its own.

        They are packed where the node that they are for is another.
        """
        with self._vitals.phase("working"):
            blocks, report = self._rollout.collect(num_blocks, task_env_steps)
            leaves = for_node != self._node_id
            values = pack(blocks) if leaves else blocks
        taken_bytes, self._inbox.taken_bytes = self._inbox.taken_bytes, 0
        infos = [block.info() for block in blocks]
        self._env_steps += sum(info.transitions for info in infos)
        return Collected(infos, report, leaves, taken_bytes if leaves else 0), *values

    def health(self) -> Health:
        """Say how the work goes on; answered beside it."""
        return self._vitals.report()

    def change(self, config: TaskConfig) -> None:
        """Explore by another ladder of ε from the next blocks on."""
        self._rollout.explore(self._ladder(config))

    def _ladder(self, config: TaskConfig) -> np.ndarray:
        rollout = config.rollout
        total = rollout.actors * rollout.environments
        ladder = exploration.epsilon_ladder(rollout.epsilon_base, rollout.epsilon_alpha, total)
        return ladder[self._index :: rollout.actors]
