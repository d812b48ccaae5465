"""EnvPool's own 4-frame stacks, played beside our single-frame environment."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import envpool
import numpy as np
from naive_replay import Row

from envs import atari

SHARED_OPTIONS = (
    "repeat_action_probability",
    "episodic_life",
    "noop_max",
    "use_fire_reset",
    "full_action_space",
    "frame_skip",
    "max_episode_steps",
)


def stacking_pool(game: str, seeds: Sequence[int], config: dict[str, Any]) -> Any:
    """EnvPool's environment of the same game, options and seeds that stacks by itself."""
    shared = {name: config[name] for name in SHARED_OPTIONS}
    sizes = {"num_envs": len(seeds), "batch_size": len(seeds), "num_threads": 1}
    return envpool.make_gymnasium(
        f"{game}-v5", seed=list(seeds), stack_num=4, reward_clip=False, **sizes, **shared
    )


@functools.cache
def play(game: str, protocol: str, max_episode_steps: int) -> tuple[list[list[Row]], np.ndarray]:
    """Play the same 260 random actions in two environments of ours and two of EnvPool's.

    Returns:
      rows of each of our environments, and EnvPool's stacks (260, 2, 4, 84, 84).
    """
    actions = np.random.default_rng(3).integers(0, 18, (260, 2))
    turns, num_envs = actions.shape
    seeds = [17 + 3 * i for i in range(num_envs)]
    env = atari.make(
        game,
        num_envs=num_envs,
        seeds=seeds,
        threads=1,
        protocol=protocol,
        options={"max_episode_steps": max_episode_steps},
    )
    pool = stacking_pool(game, seeds, env.config)
    actions = actions % env.single_action_space.n
    env.async_reset()
    stacks = [pool.reset()[0]]
    rows: list[list[Row]] = [[] for _ in range(num_envs)]
    for turn in range(turns):
        steps = env.recv()
        for i in range(num_envs):
            rows[i].append(
                Row(
                    steps.observations[i],
                    int(actions[turn, i]),
                    steps.rewards[i],
                    bool(steps.terminated[i]),
                    bool(steps.truncated[i]),
                    bool(steps.first[i]),
                    0,
                )
            )
        env.send(actions[turn], steps.env_ids)
        stacks.append(pool.step(actions[turn])[0])
    env.close()
    return rows, np.stack(stacks[:turns])


def without_lost_lives(stacks: np.ndarray, rows: list[list[Row]]) -> np.ndarray:
    """EnvPool's stacks with every reset frame filling its stack.

    EnvPool fills a stack with the reset frame only where a game starts; where a life starts it
    leaves the frames of the life before in the older places.
    """
    stacks = stacks.copy()
    for env_id, stream in enumerate(rows):
        for at, row in enumerate(stream):
            if row.first:
                reset_frame = stacks[at, env_id, -1].copy()
                for age, stack in enumerate(stacks[at : at + 3, env_id]):
                    stack[: 3 - age] = reset_frame
    return stacks
