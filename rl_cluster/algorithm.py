"""What a task learns by: DQN for games, soft actor-critic for rovers; and what each is made of.

Invariant: whoever needs to know which of the two it is asks here, so that learner, replay and
supervisor work the same way with both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rl_cluster import gpu_memory, learner
from rl_cluster.agents.flat import num_parameters
from rl_cluster.agents.sac_networks import build_actor
from rl_cluster.config import LearnerConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec, make_environment, spec_of
from rl_cluster.learner import Agent
from rl_cluster.replay.block import Block, BlockBuilder
from rl_cluster.replay.gather import Allocate, BlockSource
from rl_cluster.replay.sequences import SequenceBlocks, SequenceRule
from rl_cluster.resident import batch_memory as game_batch_memory
from rl_cluster.resident import block_source as game_block_source
from rl_cluster.rover_learning import ROVER_SPEC, full_message, sac_shape, warmed_sac


def specify(task: TaskConfig) -> EnvironmentSpec:
    """Shapes of what a task learns from; its environment is tried where it has one.

    Raises:
      ConfigError: the environment cannot be made.
    """
    if task.is_fleet:
        return ROVER_SPEC
    env = make_environment(task.env, num_envs=1, threads=1)
    spec = spec_of(env)
    env.close()
    return spec


def checkpoint_schema(task: TaskConfig, spec: EnvironmentSpec) -> dict[str, Any]:
    """What a checkpoint must agree in to fit a task."""
    if not task.is_fleet:
        return learner.checkpoint_schema(task.agent, spec)
    shape = sac_shape(task)
    return {
        "observation": list(spec.obs_shape),
        "observation_dtype": spec.obs_dtype.name,
        "actions": shape.actions,
        "conv_channels": list(shape.conv_channels),
        "features": shape.features,
        "memory": shape.memory,
        "hidden": shape.hidden,
        "normalization": shape.normalization,
    }


def weights_bytes(task: TaskConfig, spec: EnvironmentSpec) -> int:
    """Bytes of one published policy.

    Raises:
      ValueError: the network cannot be built for these observations.
    """
    # A real one: torch's meta device imports its compiler first, a second of each start.
    network = (
        build_actor(sac_shape(task)) if task.is_fleet else learner.build_network(task.agent, spec)
    )
    return 4 * num_parameters(network)  # float32


def warmed_agent(
    task: TaskConfig, settings: LearnerConfig, spec: EnvironmentSpec, device: torch.device
) -> Agent:
    """An agent that has taken an update of the real size, and with it all the memory it needs.

    The update is refused by the agent itself, so parameters follow torch's seed as ever.

    Raises:
      torch.OutOfMemoryError: the device is full.
    """
    if task.is_fleet:
        return warmed_sac(task, settings, device)
    return gpu_memory.warmed_agent(task.agent, settings, spec, device)


def block_source(
    task: TaskConfig, spec: EnvironmentSpec, device: torch.device
) -> BlockSource[Any] | SequenceBlocks:
    """What a task's batches are drawn from."""
    if not task.is_fleet:
        return game_block_source(task, spec, device)
    sac = task.sac
    return SequenceBlocks(SequenceRule(sac.burn_in, sac.unroll, sac.n_step))


def batch_memory(task: TaskConfig, device: torch.device) -> Allocate[Any]:
    """How the memory of a task's batches is made."""
    return np.empty if task.is_fleet else game_batch_memory(task, device)


def full_block(task: TaskConfig, spec: EnvironmentSpec) -> Block:
    """A block as they will come, to be measured."""
    if task.is_fleet:
        return full_message(task.rollout.block_length)
    builder = BlockBuilder(
        "measure",
        length=task.rollout.block_length,
        context=task.block_context,
        tail=task.block_tail,
    )
    observation = np.zeros(spec.obs_shape, spec.obs_dtype)
    while True:
        block = builder.append(
            observation, 0, 0.0, terminated=False, truncated=False, first=False, policy_version=0
        )
        if block is not None:
            return block
