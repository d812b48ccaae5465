"""RLlib's DQN (new API stack) on Pong, as a training program that the benchmark watches.

Its best reasonable configuration: environments, replay and learner in one process, so that nothing
is sent between processes on two cores; eight environments acted in by one forward pass; its uniform
episode buffer. Atari's wrappers are RLlib's own; Pong's
rewards need no clipping. Ray's dashboard stays off, as it does for us.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import ray
from ray import tune
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from serve import arguments
from train_progress import Progress

ENVIRONMENTS = 8
STEPS_EACH = 4
"""Steps of each environment between two rounds of updates: 32 in all."""
STEPS_SAMPLED = ("env_runners", "num_env_steps_sampled_lifetime")
NETWORKS: dict[str, tuple[list[Any], int]] = {
    "nature": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),
    "tiny": ([(16, 8, 4), (32, 4, 2)], 256),
}
"""(filters, kernel, stride) of each convolution, and units behind them."""


def make_pong(_: Any) -> gymnasium.Env[Any, Any]:
    """RLlib's Atari environment with four stacked frames of 84 by 84."""
    gymnasium.register_envs(ale_py)
    game = gymnasium.make("PongNoFrameskip-v4")
    return wrap_atari_for_new_api_stack(game, dim=84, framestack=4)


def configuration(asked: dict[str, Any]) -> DQNConfig:
    """Plain DQN: neither double nor dueling, one step."""
    filters, units = NETWORKS[asked["network"]]
    model = DefaultModelConfig(
        conv_filters=filters,
        conv_activation="relu",
        head_fcnet_hiddens=[units],
        head_fcnet_activation="relu",
    )
    return (
        DQNConfig()  # type: ignore[no-untyped-call]
        .environment("Pong")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=ENVIRONMENTS,
            rollout_fragment_length=STEPS_EACH,
        )
        .learners(num_learners=0, num_gpus_per_learner=0)
        .rl_module(model_config=model)
        .training(
            lr=1e-4,
            gamma=0.99,
            double_q=False,
            dueling=False,
            n_step=1,
            train_batch_size_per_learner=asked["batch"],
            training_intensity=asked["samples_per_insert"],
            target_network_update_freq=1_000,
            num_steps_sampled_before_learning_starts=asked["learning_starts"],
            epsilon=[(0, 1.0), (asked["learning_starts"], asked["epsilon"])],
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": asked["capacity"]},
        )
        .reporting(min_sample_timesteps_per_iteration=1)
    )


def main() -> None:
    """Train until killed."""
    asked = arguments()
    ray.init(include_dashboard=False, num_cpus=2)
    tune.register_env("Pong", make_pong)
    algorithm: Any = configuration(asked).build_algo()
    progress = Progress(asked["counts"])
    while True:
        algorithm.train()
        progress.reached(int(algorithm.metrics.peek(STEPS_SAMPLED)))


if __name__ == "__main__":
    main()
