"""Evaluation of rovers: whole episodes, the same starts for every policy."""

from __future__ import annotations

import numpy as np

from rl_cluster.config import EnvironmentConfig
from rl_cluster.environments import make_environment
from rl_cluster.rover_evaluation import Drive, Memory, drive, random_tracks

SEEDS = [5, 6, 7]
ROVER = EnvironmentConfig(entry="envs.rover:make", name="rover")


def driven(seeds: list[int], straight: bool = False) -> Drive:
    def forward(observations: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        return np.ones((len(observations), 2), np.float32), (memory[0] + 1, memory[1])

    env = make_environment(ROVER, num_envs=len(seeds), seeds=seeds)
    policy = forward if straight else random_tracks(seeds)
    try:
        return drive(env, policy, on_step=lambda: None)
    finally:
        env.close()


def test_the_same_seeds_give_the_same_episodes() -> None:
    one, two = driven(SEEDS), driven(SEEDS)
    np.testing.assert_array_equal(one.results.returns, two.results.returns)
    np.testing.assert_array_equal(one.results.lengths, two.results.lengths)
    assert (one.collisions_per_min, one.ground_m2_per_min) == (
        two.collisions_per_min,
        two.ground_m2_per_min,
    )


def test_each_rover_s_episode_is_its_own_whatever_drives_beside_it() -> None:
    together = driven(SEEDS).results
    for i, seed in enumerate(SEEDS):
        alone = driven([seed]).results
        assert alone.returns[0] == together.returns[i]
        assert alone.lengths[0] == together.lengths[i]


def test_driving_clears_more_ground_than_chance() -> None:
    assert driven(SEEDS, straight=True).ground_m2_per_min > driven(SEEDS).ground_m2_per_min
