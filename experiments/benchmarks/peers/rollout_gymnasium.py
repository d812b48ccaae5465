"""Gymnasium's AsyncVectorEnv: a process per environment, one Nature network over all of them.

Configuration: shared memory and no copy of the observations, `AtariPreprocessing` (one resize a
step) and `FrameStackObservation`; next-step autoreset, whose reset rows are no steps.

Asked: game, environments and torch_threads.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from rollout_network import EpsilonGreedy, NatureNetwork
from rollout_seen import FRAME_SKIP, MAX_STEPS, SEED, STACK, STICKINESS
from serve import arguments, serve


def make(game: str) -> gymnasium.Env[Any, Any]:
    """One environment under the protocol of all sides."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=STICKINESS,
        full_action_space=False,
        max_num_frames_per_episode=FRAME_SKIP * MAX_STEPS,
    )
    return FrameStackObservation(AtariPreprocessing(env, noop_max=1, frame_skip=FRAME_SKIP), STACK)


class Collecting:
    """The loop that a person writes around Gymnasium's vector environment."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["torch_threads"])
        game, count = asked["game"], asked["environments"]
        self._env = AsyncVectorEnv([lambda: make(game)] * count, shared_memory=True, copy=False)
        actions: Any = self._env.single_action_space
        self._network = NatureNetwork(int(actions.n))
        self._policy = EpsilonGreedy(self._network)
        self._observations, infos = self._env.reset(seed=SEED)
        self._ended = np.zeros(count, np.bool_)
        self._steps, self._actions = 0, np.zeros(self._network.num_actions, np.int64)
        self._frames = infos["episode_frame_number"]
        self._frame_skip = 0

    def step(self) -> float:
        """Step all environments once; return those that were no resets."""
        actions = self._policy.actions(self._observations)
        self._observations, _, terminated, truncated, infos = self._env.step(actions)
        moved = ~self._ended
        self._ended = terminated | truncated
        frames = infos["episode_frame_number"]
        going = moved & ~self._ended
        if going.any():
            self._frame_skip = int(np.median((frames - self._frames)[going]))
        self._frames = frames.copy()
        steps = int(moved.sum())
        self._steps += steps
        self._actions += np.bincount(actions[moved], minlength=len(self._actions))
        return steps

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
    packages = ("gymnasium", "ale-py", "opencv-python-headless", "torch", "numpy")
    serve(collecting.step, packages, collecting.facts)
