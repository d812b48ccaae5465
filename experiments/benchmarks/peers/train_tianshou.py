"""Tianshou's DQN with EnvPool on Pong, as a training program that the benchmark watches.

Its best reasonable configuration: eight EnvPool environments stepped together; a buffer that keeps
each frame once (`save_only_last_obs`, `ignore_obs_next`, stacks made when sampled); neither test
episodes nor a progress bar; 32 steps collected, then the updates that they call for.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from serve import arguments
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet
from tianshou.env.atari.atari_wrapper import make_atari_env
from tianshou.trainer import OffPolicyTrainerParams
from torch import nn
from train_progress import Progress

ENVIRONMENTS = 8
STEPS_COLLECTED = 32


class Tiny(DQNet):  # type: ignore[misc]
    """Two convolutions (16, 32 filters) and 256 units, under the interface of `DQNet`."""

    def __init__(self, actions: int) -> None:
        super().__init__(4, 84, 84, actions)
        self.net = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU(inplace=True),
            nn.Linear(256, actions),
        )  # fmt: skip


def build(asked: dict[str, Any], env: Any) -> DQN:
    """Network, policy and algorithm."""
    actions = int(env.action_space.n)
    network = Tiny(actions) if asked["network"] == "tiny" else DQNet(4, 84, 84, actions)
    policy = DiscreteQLearningPolicy(
        model=ScaledObsInputActionReprNet(network),
        action_space=env.action_space,
        observation_space=env.observation_space,
        eps_training=1.0,
    )
    return DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-4),
        gamma=0.99,
        n_step_return_horizon=1,
        target_update_freq=1_000,
        is_double=False,
    )


def main() -> None:
    """Train until killed."""
    asked = arguments()
    gymnasium.register_envs(ale_py)
    np.random.seed(1)
    torch.manual_seed(1)
    env, training_envs, _ = make_atari_env("PongNoFrameskip-v4", 1, ENVIRONMENTS, 1)
    algorithm = build(asked, env)
    buffer = VectorReplayBuffer(
        asked["capacity"],
        buffer_num=ENVIRONMENTS,
        ignore_obs_next=True,
        save_only_last_obs=True,
        stack_num=4,
    )
    collector = Collector[CollectStats](algorithm, training_envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=asked["learning_starts"])
    algorithm.policy.set_eps_training(asked["epsilon"])
    progress = Progress(asked["counts"])
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1_000_000,
            epoch_num_steps=100_000,
            collection_step_num_env_steps=STEPS_COLLECTED,
            update_step_num_gradient_steps_per_sample=(
                asked["samples_per_insert"] / asked["batch"]
            ),
            batch_size=asked["batch"],
            training_fn=lambda epoch, env_steps: progress.reached(env_steps),
            verbose=False,
            show_progress=False,
        )
    )


if __name__ == "__main__":
    main()
