"""What this machine would allow at most while learning: environment, inference and update alone.

One piece of work is a number of environment steps in raw EnvPool, as many observations through
the acting network, and the updates that they call for, one after another and each on one thread;
nothing is stored, sampled, sent or waited for. Its CPU seconds are what these steps cost any
program built from the same parts. `facts` holds what each part costs, and the targets of one fixed
batch.

Asked: config and overrides as given to `rl-cluster train`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import envpool
import numpy as np
import torch
from serve import arguments, serve

from envs.atari import PROTOCOLS
from rl_cluster.agents.dqn import DQN, Transitions
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.config import RolloutConfig, TaskConfig
from rl_cluster.config_file import load
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import build_agent, build_network

ACTIONS = 6
FRAME = (84, 84)
STEPS = 128
"""Environment steps in one piece: with 1 to 8 samples per insert, 4 to 32 updates of 32."""
TERMINAL_EVERY = 4


class RawEnvironments:
    """EnvPool under the protocol that our environments have, with random actions."""

    def __init__(self, game: str, rollout: RolloutConfig) -> None:
        protocol = PROTOCOLS["machado"]
        self._batch = rollout.inference_batch
        self._actions = np.random.default_rng(0).integers(ACTIONS, size=self._batch)
        self._env = envpool.make_gymnasium(
            f"{game}-v5",
            num_envs=rollout.environments,
            batch_size=self._batch,
            num_threads=1,
            seed=0,
            stack_num=1,
            repeat_action_probability=protocol.repeat_action_probability,
            episodic_life=protocol.episodic_life,
            noop_max=protocol.noop_max,
            use_fire_reset=protocol.use_fire_reset,
            max_episode_steps=protocol.max_frames // protocol.frame_skip,
        )
        self._env.async_reset()

    def step(self) -> None:
        """Take `STEPS` steps."""
        for _ in range(STEPS // self._batch):
            info = self._env.recv()[-1]
            self._env.send(self._actions, info["env_id"])


class Limit:
    """The three parts, and what each has cost in CPU seconds per environment step."""

    def __init__(self, task: TaskConfig) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._environments = RawEnvironments(task.env.name or "Pong", task.rollout)
        self._updates = round(STEPS * task.replay.samples_per_insert / task.learner.batch)
        spec = EnvironmentSpec(FRAME, np.dtype(np.uint8), ACTIONS, frame_skip=4)
        learner = dataclasses.replace(task.learner, threads=1)
        self._agent = build_agent(task.agent, learner, spec, torch.device("cpu"))
        self._batch = fixed_batch(task)
        self._policy = GreedyPolicy(
            build_network(task.agent, spec), bfloat16=task.rollout.precision == "bfloat16"
        )
        shape = (task.rollout.inference_batch, task.agent.frame_stack, *FRAME)
        self._stacks = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        self.targets = targets(self._agent, self._batch, task)
        self._spent_s = {"environment": 0.0, "inference": 0.0, "update": 0.0}
        self._steps = 0

    def piece(self) -> float:
        """Do one piece; return its environment steps."""
        self._time("environment", self._environments.step)
        self._time("inference", self._infer)
        self._time("update", self._update)
        self._steps += STEPS
        return STEPS

    def facts(self) -> dict[str, Any]:
        """CPU seconds per environment step of each part, and the targets of the fixed batch."""
        per_step = {part: spent / max(1, self._steps) for part, spent in self._spent_s.items()}
        return {"cpu_s_per_step": per_step, **self.targets}

    def _infer(self) -> None:
        for _ in range(STEPS // len(self._stacks)):
            self._policy.actions(self._stacks)

    def _update(self) -> None:
        for index in range(self._updates):
            self._agent.update(self._batch, index)

    def _time(self, part: str, work: Callable[[], None]) -> None:
        start_s = time.process_time()
        work()
        self._spent_s[part] += time.process_time() - start_s


def fixed_batch(task: TaskConfig) -> Transitions:
    """A batch of random frames, actions and rewards of which some end an episode."""
    rows = task.learner.batch
    source = torch.Generator().manual_seed(0)
    frames = (rows, task.agent.frame_stack, *FRAME)
    ended = torch.arange(rows) % TERMINAL_EVERY == 0
    return Transitions(
        s_tm1=torch.randint(256, frames, dtype=torch.uint8, generator=source),
        a_tm1=torch.randint(ACTIONS, (rows,), generator=source),
        r_t=torch.randint(-1, 2, (rows,), generator=source).float(),
        discount_t=task.agent.discount * (~ended).float(),
        s_t=torch.randint(256, frames, dtype=torch.uint8, generator=source),
        weights=torch.ones(rows),
    )


def targets(agent: DQN, batch: Transitions, task: TaskConfig) -> dict[str, Any]:
    """TD errors of the first update beside a plain computation in float32; changes the agent.

    Both networks are still equal, so r + γ (1 - done) max_a Q(s_t, a) - Q(s_tm1, a) needs only the
    parameters of one, here in a network written down once more. Empty where the agent is not plain.
    """
    if task.agent.double or task.agent.dueling:
        return {}
    network = plain_network(task)
    parameters = [p for name, p in agent.model_tensors().items() if name.startswith("online.")]
    network.load_state_dict(dict(zip(network.state_dict(), parameters, strict=True)))
    with torch.no_grad():
        next_values = network(batch.s_t / 255.0).max(1).values
        chosen = network(batch.s_tm1 / 255.0)[torch.arange(len(batch.a_tm1)), batch.a_tm1]
    expected = batch.r_t + batch.discount_t * next_values - chosen
    found = agent.update(batch, 0).td_errors
    return {"td_errors": found.tolist(), "td_errors_plain": expected.tolist()}


def plain_network(task: TaskConfig) -> torch.nn.Sequential:
    """The convolutional network of Mnih et al. 2015, of the configured size, in float32."""
    layers: list[torch.nn.Module] = []
    depth, side = task.agent.frame_stack, FRAME[0]
    for filters, (kernel, stride) in zip(
        task.agent.conv_channels, ((8, 4), (4, 2), (3, 1)), strict=False
    ):
        layers += [torch.nn.Conv2d(depth, filters, kernel, stride), torch.nn.ReLU()]
        depth, side = filters, (side - kernel) // stride + 1
    hidden = task.agent.hidden
    return torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Linear(depth * side * side, hidden),
        torch.nn.ReLU(), torch.nn.Linear(hidden, ACTIONS),
    )  # fmt: skip


def main() -> None:
    """Serve until the benchmark is done."""
    asked = arguments()
    (task,) = load(Path(asked["config"]), asked["overrides"]).tasks.values()
    limit = Limit(task)
    serve(limit.piece, ("rl-cluster", "ray", "envpool", "torch", "numpy"), limit.facts)


if __name__ == "__main__":
    main()
