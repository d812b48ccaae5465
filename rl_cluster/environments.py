"""Environments by entry string: the only door to `envs`, whose name is too common to import by.

Invariant: what comes through is an `AsyncVectorEnv`; wrong names and settings raise before anything
runs, with the entry's own words.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_cluster.config import ConfigError, EnvironmentConfig

if TYPE_CHECKING:
    from envs.base import AsyncVectorEnv


@dataclass(frozen=True)
class EnvironmentSpec:
    """What the other parts need to know of an environment."""

    obs_shape: tuple[int, ...]
    """One observation, without stack."""
    obs_dtype: np.dtype
    num_actions: int
    frame_skip: int
    """Environment frames of one environment step."""


def make_environment(
    config: EnvironmentConfig,
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
) -> AsyncVectorEnv:
    """Make the vector environment that a task's configuration names.

    Raises:
      ConfigError: the entry does not exist, or it refuses the name or a setting.
    """
    module_name, _, function = config.entry.partition(":")
    try:
        make: Any = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"env.entry is {config.entry!r}: {error}; give module:function, such as envs.atari:make"
        ) from error
    try:
        env: AsyncVectorEnv = make(
            config.name,
            num_envs=num_envs,
            batch_size=batch_size,
            seeds=seeds,
            threads=threads,
            **config.settings,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"env {config.name!r} of {config.entry}: {error}") from error
    return env


def spec_of(env: AsyncVectorEnv) -> EnvironmentSpec:
    """Shapes of an environment that was made."""
    space = env.single_observation_space
    num_actions = getattr(env.single_action_space, "n", None)
    if space.shape is None or space.dtype is None or num_actions is None:
        raise ConfigError(
            f"DQN needs array observations and discrete actions; this environment has {space} and "
            f"{env.single_action_space}"
        )
    return EnvironmentSpec(space.shape, np.dtype(space.dtype), int(num_actions), env.frame_skip)
