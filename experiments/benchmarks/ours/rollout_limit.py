"""What a rollout cannot do without, each alone: bare EnvPool, or bare batched inference.

Invariant: the same environments, batch and threads as ours, the same network in the same precision;
nothing else is done. Environments take random actions. The network is the Nature network in plain
torch, its weights converted to bfloat16 once.

Asked: kind (`env` or `inference`); game, environments, inference_batch and env_threads as for ours.
"""

from __future__ import annotations

from typing import Any

import envpool
import numpy as np
import torch
from rollout_seen import FRAME_SKIP, MAX_STEPS, SEED, STICKINESS
from serve import arguments, serve
from torch import nn

ROUNDS_OF_ACTIONS = 1_000


class BareEnvironments:
    """EnvPool, given actions that were drawn before."""

    def __init__(self, asked: dict[str, Any]) -> None:
        batch = asked["inference_batch"]
        self._pool: Any = envpool.make_gymnasium(
            f"{asked['game']}-v5",
            num_envs=asked["environments"],
            batch_size=batch,
            num_threads=asked["env_threads"],
            seed=SEED,
            repeat_action_probability=STICKINESS,
            episodic_life=False,
            noop_max=1,
            use_fire_reset=False,
            frame_skip=FRAME_SKIP,
            max_episode_steps=MAX_STEPS,
            stack_num=1,
        )
        num_actions = int(self._pool.action_space.n)
        rng = np.random.default_rng(SEED)
        self._actions = rng.integers(num_actions, size=(ROUNDS_OF_ACTIONS, batch))
        self._round = 0
        self._pool.async_reset()

    def step(self) -> float:
        """Receive and answer one batch; return its size."""
        *_, info = self._pool.recv()
        self._pool.send(self._actions[self._round % ROUNDS_OF_ACTIONS], info["env_id"])
        self._round += 1
        return float(len(info["env_id"]))


class BareInference:
    """The Nature network over one batch after another, from bytes to greedy actions."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        self._network = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6),
        ).to(torch.bfloat16)  # fmt: skip
        shape = (asked["inference_batch"], 4, 84, 84)
        self._batch = torch.randint(256, shape, dtype=torch.uint8)

    def act(self) -> float:
        """Choose actions for one batch; return its size."""
        with torch.inference_mode():
            self._network(self._batch.to(torch.bfloat16)).argmax(1).numpy()
        return float(len(self._batch))


if __name__ == "__main__":
    asked = arguments()
    work = BareEnvironments(asked).step if asked["kind"] == "env" else BareInference(asked).act
    serve(work, ("envpool", "torch", "numpy"))
