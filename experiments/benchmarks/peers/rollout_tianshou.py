"""Tianshou's Collector with EnvPool, filling its vector replay buffer as in its Atari examples.

Configuration: EnvPool makes the stacks; the buffer keeps single frames (`save_only_last_obs`,
`ignore_obs_next`), its documented way to save memory and copies. EnvPool runs synchronously, which
is all that the Collector takes.

Asked: game, environments, env_threads and torch_threads.
"""

from __future__ import annotations

from typing import Any

import envpool
import numpy as np
import torch
from rollout_network import NatureNetwork
from rollout_seen import EPSILON, FRAME_SKIP, MAX_STEPS, SEED, STACK, STICKINESS
from serve import arguments, serve
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.data import Collector, VectorReplayBuffer
from torch import Tensor, nn

BUFFER_STEPS = 10_000
STEPS_PER_COLLECT = 2


class TianshouNetwork(nn.Module):
    """The network as Tianshou calls it."""

    def __init__(self, network: NatureNetwork) -> None:
        super().__init__()
        self._network = network

    def forward(self, obs: np.ndarray, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        """(b, A) action values of (b, 4, 84, 84) uint8 observations, and the state unchanged."""
        return self._network(torch.from_numpy(obs)), state


class Collecting:
    """A collector with everything that it needs."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["torch_threads"])
        self._count = asked["environments"]
        env = envpool.make_gymnasium(
            f"{asked['game']}-v5",
            num_envs=self._count,
            num_threads=asked["env_threads"],
            seed=SEED,
            repeat_action_probability=STICKINESS,
            episodic_life=False,
            noop_max=1,
            use_fire_reset=False,
            max_episode_steps=MAX_STEPS,
            frame_skip=FRAME_SKIP,
            stack_num=STACK,
            reward_clip=False,
        )
        self._frame_skip = int(env.config["frame_skip"])
        self._network = NatureNetwork(int(env.action_space.n))
        policy = DiscreteQLearningPolicy(
            model=TianshouNetwork(self._network),
            action_space=env.action_space,
            observation_space=env.observation_space,
            eps_training=EPSILON,
            eps_inference=EPSILON,
        )
        self._buffer = VectorReplayBuffer(
            BUFFER_STEPS, self._count, stack_num=STACK, ignore_obs_next=True,
            save_only_last_obs=True,
        )  # fmt: skip
        self._collector = Collector(policy, env, self._buffer, exploration_noise=True)
        self._collector.reset()
        self._steps = 0

    def collect(self) -> float:
        """Collect a few steps of every environment."""
        found = self._collector.collect(n_step=STEPS_PER_COLLECT * self._count)
        self._steps += found.n_collected_steps
        return float(found.n_collected_steps)

    def facts(self) -> dict[str, Any]:
        """What the benchmark checks before it measures."""
        actions = np.asarray(self._buffer.act[self._buffer.sample_indices(0)], np.int64)
        return {
            **self._network.facts(),
            "frame_skip": self._frame_skip,
            "steps": self._steps,
            "actions": np.bincount(actions, minlength=self._network.num_actions).tolist(),
        }


if __name__ == "__main__":
    collecting = Collecting(arguments())
    serve(collecting.collect, ("tianshou", "envpool", "torch", "numpy"), collecting.facts)
