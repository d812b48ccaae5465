"""ε-greedy exploration: Ape-X's ladder, its decay, and how often a random action is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.exploration import annealed, epsilon_greedy, epsilon_ladder


def test_the_ladder_is_that_of_the_paper() -> None:
    """Horgan et al. 2018, section 4.1: ε = 0.4, α = 7, N actors."""
    ladder = epsilon_ladder(0.4, 7.0, 8)
    assert ladder == pytest.approx([0.4 ** (1 + i / 7 * 7) for i in range(8)])
    assert ladder[0] == 0.4
    assert ladder[-1] == pytest.approx(0.4**8)


def test_one_environment_explores_with_the_base() -> None:
    assert epsilon_ladder(0.3, 7.0, 1).tolist() == [0.3]


@given(st.floats(0, 1), st.floats(0, 10), st.integers(1, 300))
def test_every_rung_is_a_probability_and_none_is_above_the_one_before(
    base: float, alpha: float, num_envs: int
) -> None:
    ladder = epsilon_ladder(base, alpha, num_envs)
    assert ladder.shape == (num_envs,)
    assert ladder.dtype == np.float64
    assert ((ladder >= 0) & (ladder <= base)).all()
    assert (np.diff(ladder) <= 0).all()


def test_everybody_acts_at_random_during_warm_up() -> None:
    ladder = epsilon_ladder(0.4, 7.0, 4)
    for env_steps in (0, 500, 999):
        assert annealed(ladder, env_steps, 1_000, 2_000).tolist() == [1.0] * 4


def test_epsilon_falls_on_a_line_to_the_ladder_and_stays() -> None:
    ladder = np.array([0.4, 0.1])
    assert annealed(ladder, 1_000, 1_000, 2_000).tolist() == [1.0, 1.0]
    assert annealed(ladder, 2_000, 1_000, 2_000) == pytest.approx([0.7, 0.55])
    for env_steps in (3_000, 10**9):
        assert annealed(ladder, env_steps, 1_000, 2_000) == pytest.approx(ladder)


def test_without_decay_the_ladder_holds_from_the_end_of_warm_up() -> None:
    ladder = np.array([0.4, 0.1])
    assert annealed(ladder, 9, 10, 0).tolist() == [1.0, 1.0]
    assert annealed(ladder, 10, 10, 0).tolist() == ladder.tolist()


@given(st.integers(0, 5_000), st.integers(0, 2_000), st.integers(0, 2_000))
def test_epsilon_never_rises_with_experience(env_steps: int, warm_up: int, decay: int) -> None:
    ladder = epsilon_ladder(0.4, 7.0, 5)
    now, later = (annealed(ladder, n, warm_up, decay) for n in (env_steps, env_steps + 1))
    assert (later <= now).all()
    assert ((ladder <= later) & (later <= 1)).all()


def test_annealing_leaves_the_ladder_as_it_was() -> None:
    ladder = np.array([0.4, 0.1])
    annealed(ladder, 2_000, 1_000, 2_000)[:] = 9.0
    annealed(ladder, 9_000, 1_000, 2_000)[:] = 9.0
    assert ladder.tolist() == [0.4, 0.1]


def test_epsilon_zero_is_greedy() -> None:
    greedy = np.arange(6)
    actions = epsilon_greedy(greedy, np.zeros(6), 6, np.random.default_rng(0))
    assert actions.tolist() == greedy.tolist()
    assert actions.dtype == np.int64


def test_epsilon_one_is_uniform() -> None:
    size = 40_000
    greedy = np.zeros(size, np.int64)
    actions = epsilon_greedy(greedy, np.ones(size), 4, np.random.default_rng(0))
    shares = np.bincount(actions, minlength=4) / size
    assert shares == pytest.approx([0.25] * 4, abs=0.01)


def test_each_environment_explores_with_its_own_probability() -> None:
    """A uniform action is the greedy one once in A times, so the greedy share is 1 - ε + ε / A."""
    rng, epsilon = np.random.default_rng(0), np.array([0.0, 0.2, 0.8])
    draws = [epsilon_greedy(np.zeros(3, np.int64), epsilon, 4, rng) for _ in range(20_000)]
    greedy = (np.array(draws) == 0).mean(0)
    assert greedy == pytest.approx(1 - epsilon + epsilon / 4, abs=0.01)


def test_environments_explore_each_for_itself() -> None:
    """In one step about the share ε of them, not all or none."""
    greedy, epsilon = np.zeros(10_000, np.int64), np.full(10_000, 0.5)
    actions = epsilon_greedy(greedy, epsilon, 1_000, np.random.default_rng(0))
    assert (actions != 0).mean() == pytest.approx(0.5, abs=0.02)
    assert len(set(actions.tolist())) > 900


def test_the_same_random_state_gives_the_same_actions() -> None:
    greedy, epsilon = np.zeros(50, np.int64), np.full(50, 0.5)
    first, second, third = (
        epsilon_greedy(greedy, epsilon, 6, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.tolist() == second.tolist()
    assert first.tolist() != third.tolist()
