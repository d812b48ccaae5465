"""What rovers learn with: what they send, networks, agent, and the memory that they need."""

from __future__ import annotations

import math

import numpy as np
import torch

from rl_cluster.agents.captured import as_torch
from rl_cluster.agents.flat import num_parameters
from rl_cluster.agents.sac import SAC, SACSettings, Sequences
from rl_cluster.agents.sac_networks import SACShape, build_critic
from rl_cluster.config import LearnerConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.replay.block import Block

_BEV, _PROPRIO, _ACTIONS = (2, 128, 128), 6, 2
ROVER_SPEC = EnvironmentSpec(
    (math.prod(_BEV) + _PROPRIO,), np.dtype(np.float16), _ACTIONS, frame_skip=1
)
"""What rovers send: bird's-eye view and proprioception in one row; `num_actions` tracks."""


def sac_shape(task: TaskConfig) -> SACShape:
    """The networks of a fleet."""
    sac = task.sac
    return SACShape(
        _BEV,
        _PROPRIO,
        _ACTIONS,
        sac.conv_channels,
        sac.features,
        "lstm" if sac.core == "lstm" else "none",
        sac.hidden,
        sac.critic_norm,
    )


def warmed_sac(task: TaskConfig, settings: LearnerConfig, device: torch.device) -> SAC:
    """An agent that has taken an update of the real size, which it refused by itself.

    Raises:
      torch.OutOfMemoryError: the device is full.
    """
    sac = task.sac
    agent = SAC(
        SACSettings(
            discount=sac.discount,
            tau=sac.tau,
            n_step=sac.n_step,
            burn_in=sac.burn_in,
            unroll=sac.unroll,
            target_entropy=sac.target_entropy,
            initial_alpha=sac.initial_alpha,
            learning_rate=settings.learning_rate,
            actor_learning_rate=settings.learning_rate,
            alpha_learning_rate=sac.alpha_learning_rate,
            schedule=settings.schedule,
            schedule_updates=settings.schedule_updates,
            schedule_factor=settings.schedule_factor,
            adam_epsilon=settings.adam_epsilon,
            max_gradient_norm=settings.max_gradient_norm,
            bfloat16=settings.precision == "bfloat16",
            empty_cache_period=sac.empty_cache_updates,
        ),
        sac_shape(task),
        device,
    )
    agent.warm_up(_empty_sequences(task))
    return agent


def _empty_sequences(task: TaskConfig) -> Sequences:
    sac = task.sac
    size = (task.draws, sac.burn_in + sac.unroll + sac.n_step)
    flags = torch.zeros(size, dtype=torch.bool)
    return Sequences(
        torch.zeros(*size, *ROVER_SPEC.obs_shape, dtype=as_torch(ROVER_SPEC.obs_dtype)),
        torch.zeros(*size, _ACTIONS),
        torch.zeros(size),
        flags,
        flags,
        ~flags,
        torch.zeros(size[0]),
    )


def sac_bytes(task: TaskConfig) -> int:
    """Bound of the bytes of a GPU that a fleet's learner needs, but for the libraries' part.

    Parameters with their targets, gradients and moments; two batches; and for each frame of one
    what the convolutions keep for the gradient, at most some ten times the frame in float32.
    """
    with torch.device("meta"):
        parameters = num_parameters(build_critic(sac_shape(task)))
    frames = task.draws * (task.sac.burn_in + task.sac.unroll + task.sac.n_step)
    numbers = math.prod(ROVER_SPEC.obs_shape)
    return 4 * 8 * parameters + frames * numbers * (2 * 2 + 4 * 10)


def full_message(length: int) -> Block:
    """The block of a whole message, empty, to be measured."""
    rows = length + 1
    flags = np.zeros(rows, np.bool_)
    return Block(
        "measure",
        0,
        0,
        length,
        np.zeros((rows, *ROVER_SPEC.obs_shape), ROVER_SPEC.obs_dtype),
        np.zeros((rows, _ACTIONS), np.float32),
        np.zeros(rows, np.float32),
        flags,
        flags,
        flags,
        np.zeros(rows, np.int32),
    )
