"""Stable-Baselines3's DQN on Pong, as a training program that the benchmark watches.

Its best reasonable configuration: eight environments, so that one forward pass acts in all of them;
`optimize_memory_usage`, which keeps each observation once. Exploration ends when learning begins.
"""

from __future__ import annotations

import ale_py
import gymnasium
import torch
from serve import arguments
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack
from torch import Tensor, nn
from train_progress import Progress

ENVIRONMENTS = 8
TOTAL_STEPS = 10_000_000


class Tiny(BaseFeaturesExtractor):  # type: ignore[misc]
    """Two convolutions (16, 32 filters) and 256 units."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, features_dim=256)
        self.layers = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU(),
        )  # fmt: skip

    def forward(self, observations: Tensor) -> Tensor:
        """(B, 256) features of (B, 4, 84, 84) scaled observations."""
        features: Tensor = self.layers(observations)
        return features


class Count(BaseCallback):  # type: ignore[misc]
    """Reports each step of the environments."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def _on_step(self) -> bool:
        self._progress.reached(self.num_timesteps)
        return True


def rhythm(samples_per_insert: float, batch: int) -> tuple[int, int]:
    """(steps of all environments, updates) that come in turn."""
    for steps in range(1, batch + 1):
        updates = samples_per_insert * steps * ENVIRONMENTS / batch
        if updates >= 1 and updates == int(updates):
            return steps, int(updates)
    raise ValueError(f"no whole rhythm gives {samples_per_insert} samples per insert")


def main() -> None:
    """Train until killed."""
    asked = arguments()
    gymnasium.register_envs(ale_py)
    steps, updates = rhythm(asked["samples_per_insert"], asked["batch"])
    tiny = {"features_extractor_class": Tiny, "net_arch": []}
    model = DQN(
        "CnnPolicy",
        VecFrameStack(make_atari_env("PongNoFrameskip-v4", ENVIRONMENTS, seed=1), 4),
        learning_rate=1e-4,
        buffer_size=asked["capacity"],
        learning_starts=asked["learning_starts"],
        batch_size=asked["batch"],
        train_freq=steps,
        gradient_steps=updates,
        target_update_interval=1_000,
        exploration_fraction=asked["learning_starts"] / TOTAL_STEPS,
        exploration_final_eps=asked["epsilon"],
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        policy_kwargs=tiny if asked["network"] == "tiny" else None,
        device=torch.device("cpu"),
    )
    model.learn(TOTAL_STEPS, callback=Count(Progress(asked["counts"])))


if __name__ == "__main__":
    main()
