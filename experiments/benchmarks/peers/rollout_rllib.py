"""RLlib's SingleAgentEnvRunner (new API stack), in process and without Ray's actors around it.

Configuration: ale-py's own C++ vector environment through `gym_env_vectorize_mode =
vector_entry_point`, the fastest that the runner takes (its default steps Python environments one
after another), and an RLModule around the Nature network that all peers act with.

Asked: game, environments, env_threads and torch_threads.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rollout_network import EpsilonGreedy, NatureNetwork
from rollout_seen import FRAME_SKIP, MAX_STEPS, SEED, STICKINESS
from serve import arguments, serve

STEPS_PER_SAMPLE = 4


class NatureModule(TorchRLModule):
    """ε-greedy actions of the Nature network."""

    def setup(self) -> None:
        """Build the network."""
        actions: Any = self.action_space
        self.network = NatureNetwork(int(actions.n))
        self._policy = EpsilonGreedy(self.network)

    def _forward_exploration(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        actions = self._policy.actions(batch[Columns.OBS].numpy())
        return {Columns.ACTIONS: torch.from_numpy(actions)}


def config_of(asked: dict[str, Any]) -> Any:
    """Return RLlib's configuration of a runner."""
    dqn: Any = DQNConfig
    gymnasium.register_envs(ale_py)
    options = {
        "num_threads": asked["env_threads"],
        "noop_max": 1,
        "use_fire_reset": False,
        "episodic_life": False,
        "reward_clipping": False,
        "repeat_action_probability": STICKINESS,
        "frameskip": FRAME_SKIP,
        "max_num_frames_per_episode": FRAME_SKIP * MAX_STEPS,
    }
    return (
        dqn()
        .environment(f"ALE/{asked['game']}-v5", env_config=options)
        .env_runners(
            num_envs_per_env_runner=asked["environments"],
            gym_env_vectorize_mode="vector_entry_point",
            num_env_runners=0,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=NatureModule))
        .debugging(seed=SEED)
    )


class Collecting:
    """The runner under measurement."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["torch_threads"])
        self._count = asked["environments"]
        self._runner = SingleAgentEnvRunner(config=config_of(asked))
        module: Any = self._runner.module
        self._network: NatureNetwork = module.network
        self._frame_skip = 0
        self._steps, self._actions = 0, np.zeros(self._network.num_actions, np.int64)

    def sample(self) -> float:
        """Sample a few steps of every environment."""
        episodes = self._runner.sample(num_timesteps=STEPS_PER_SAMPLE * self._count, explore=True)
        self._runner.get_metrics()
        steps = sum(len(episode) for episode in episodes)
        self._steps += steps
        for episode in episodes:
            self._actions += np.bincount(episode.get_actions(), minlength=len(self._actions))
            frames = [info["episode_frame_number"] for info in episode.get_infos()[-3:-1]]
            if len(frames) == 2:
                self._frame_skip = int(frames[1] - frames[0])
        return float(steps)

    def facts(self) -> dict[str, Any]:
        """What the benchmark checks before it measures."""
        return {
            **self._network.facts(),
            "frame_skip": self._frame_skip,
            "steps": self._steps,
            "actions": self._actions.tolist(),
        }


if __name__ == "__main__":
    collecting = Collecting(arguments())
    serve(collecting.sample, ("ray", "gymnasium", "ale-py", "torch", "numpy"), collecting.facts)
