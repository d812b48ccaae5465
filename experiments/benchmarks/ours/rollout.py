"""Our rollout in one process, built as the rollout actor builds it; its blocks are thrown away.

Invariant: a unit is one environment step that a block of replay holds, reset rows left out; every
observation went through the network, and `facts` counts how many did.

Asked: game; environments, inference_batch and env_threads as in the configuration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rollout_seen import EPSILON, MAX_STEPS, SEED, STICKINESS, Seen, probe
from serve import arguments, serve

from rl_cluster.agents.networks import QNetwork
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.config import AgentConfig, EnvironmentConfig, RolloutConfig, TaskConfig
from rl_cluster.environments import make_environment, spec_of
from rl_cluster.learner import build_network
from rl_cluster.rollout import Rollout, RolloutSettings


class WatchedPolicy(GreedyPolicy):
    """A policy that tells what it is given."""

    def __init__(self, network: QNetwork, *, bfloat16: bool) -> None:
        super().__init__(network, bfloat16=bfloat16)
        self.seen = Seen()

    def actions(self, observations: np.ndarray) -> np.ndarray:
        """(b,) int64 greedy actions of (b, stack, *obs_shape) observations."""
        self.seen.add(observations)
        return super().actions(observations)


def task_of(asked: dict[str, Any]) -> TaskConfig:
    """Return the configuration that the benchmark asks for."""
    return TaskConfig(
        env=EnvironmentConfig(name=asked["game"]),
        agent=AgentConfig(dueling=False),
        rollout=RolloutConfig(
            environments=asked["environments"],
            inference_batch=asked["inference_batch"],
            env_threads=asked["env_threads"],
        ),
    )


class Collecting:
    """The rollout under measurement."""

    def __init__(self, task: TaskConfig) -> None:
        torch.manual_seed(SEED)
        torch.set_num_threads(task.rollout.torch_threads)
        rollout, agent = task.rollout, task.agent
        self._env = make_environment(
            task.env,
            num_envs=rollout.environments,
            batch_size=rollout.inference_batch,
            seeds=SEED,
            threads=rollout.env_threads,
        )
        spec = spec_of(self._env)
        self._network = build_network(agent, spec)
        self._policy = WatchedPolicy(self._network, bfloat16=rollout.precision == "bfloat16")
        settings = RolloutSettings(
            name=f"rollout:{task.env.name}/0",
            block_length=rollout.block_length,
            frame_stack=agent.frame_stack,
            n_step=agent.n_step,
            ladder=np.full(rollout.environments, EPSILON),
            warm_up_env_steps=0,
            exploration_env_steps=0,
        )
        rng = np.random.default_rng(SEED)
        self._rollout = Rollout(self._env, spec, self._policy, _no_weights, settings, rng)
        self._blocks_per_collect = rollout.blocks_per_collect
        self._steps, self._actions = 0, np.zeros(spec.num_actions, np.int64)
        self._check_protocol()
        self._warm_up(rollout.environments * rollout.block_length)

    def collect(self) -> float:
        """Collect as the actor's call does; return the environment steps that came."""
        blocks, _ = self._rollout.collect(self._blocks_per_collect, 0)
        steps = 0
        for block in blocks:
            block.info()
            core = slice(block.context, block.context + block.core)
            steps += block.core - int(block.first[core].sum())
            self._actions += np.bincount(block.actions[core], minlength=len(self._actions))
        self._steps += steps
        return steps

    def facts(self) -> dict[str, Any]:
        """What the benchmark checks before it measures."""
        with torch.inference_mode():
            values = self._network(torch.from_numpy(probe())).tolist()
        return {
            **self._policy.seen.facts(),
            "steps": self._steps,
            "actions": self._actions.tolist(),
            "frame_skip": self._env.frame_skip,
            "values": values,
        }

    def _check_protocol(self) -> None:
        config = self._env.config
        protocol = config["repeat_action_probability"], config["max_episode_steps"]
        if protocol != (STICKINESS, MAX_STEPS):
            raise ValueError(f"stickiness and longest game are {protocol}, not as on other sides")

    def _warm_up(self, env_steps: int) -> None:
        """Until every environment has sealed a block, fewer steps arrive than are made."""
        while self._steps < env_steps:
            self.collect()


def _no_weights() -> None:
    """Nobody learns meanwhile."""


if __name__ == "__main__":
    collecting = Collecting(task_of(arguments()))
    serve(collecting.collect, ("rl-cluster", "envpool", "torch", "numpy"), collecting.facts)
