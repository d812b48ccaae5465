"""Targets and losses against the papers' formulas, step by step and by other means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import unhurried

from rl_cluster.agents import sac_losses as losses


def flags(*rows: int, length: int = 6) -> torch.Tensor:
    found = torch.zeros(1, length, dtype=torch.bool)
    found[0, list(rows)] = True
    return found


def returns_of(terminal: list[int], truncated: list[int], last_valid: int) -> losses.Returns:
    """Rewards 1, 2, 4, …: a sum names its rows. Trained are rows 1 to 3, n = 2."""
    return losses.n_step_returns(
        2.0 ** torch.arange(6)[None],
        flags(*terminal),
        flags(*terminal, *truncated),
        flags(*range(last_valid + 1)),
        burn_in=1,
        unroll=3,
        n_step=2,
        discount=0.5,
    )


@pytest.mark.parametrize(
    ("terminal", "truncated", "last_valid", "rewards", "discounts", "trained"),
    [
        ([], [], 5, [8, 16, 32], [0.25, 0.25, 0.25], [1, 1, 1]),
        ([3], [], 5, [8, 8, 0], [0, 0, 0], [1, 1, 0]),
        ([], [3], 5, [8, 8, 0], [0.25, 0.5, 1], [1, 1, 0]),
        ([], [], 4, [8, 16, 16], [0.25, 0.25, 0.5], [1, 1, 1]),
        ([], [], 2, [4, 0, 0], [0.5, 1, 1], [1, 0, 0]),
        ([2], [], 2, [4, 0, 0], [0, 0, 1], [1, 0, 0]),
    ],
)
def test_returns_end_where_the_episode_or_the_rows_do(
    terminal: list[int],
    truncated: list[int],
    last_valid: int,
    rewards: list[float],
    discounts: list[float],
    trained: list[int],
) -> None:
    found = returns_of(terminal, truncated, last_valid)
    assert found.trained[0].tolist() == [bool(each) for each in trained]
    assert found.rewards[0].tolist() == rewards
    assert found.discounts[0].tolist() == discounts


@given(
    mean=st.floats(-3, 3), log_std=st.floats(-5, 1), noise=st.floats(-2, 2), size=st.integers(1, 3)
)
@settings(unhurried, max_examples=40)
def test_log_probabilities_are_those_of_torchs_transformed_distribution(
    mean: float, log_std: float, noise: float, size: int
) -> None:
    mu, log_sigma, eps = (
        torch.full((size,), v, dtype=torch.float64) for v in (mean, log_std, noise)
    )
    action, log_pi = losses.sample_action(mu, log_sigma, eps)
    transform = torch.distributions.TanhTransform()  # type: ignore[no-untyped-call]
    gaussian = torch.distributions.Normal(mu, log_sigma.exp())
    before = mu + log_sigma.exp() * eps
    wanted = gaussian.log_prob(before) - transform.log_abs_det_jacobian(before, action)
    torch.testing.assert_close(action, torch.tanh(before))
    torch.testing.assert_close(log_pi, wanted.sum())


def test_log_probabilities_stay_finite_where_tanh_is_one() -> None:
    mean = torch.tensor([[-60.0, 60.0]], requires_grad=True)
    action, log_pi = losses.sample_action(mean, torch.zeros(1, 2), torch.zeros(1, 2))
    assert action.abs().tolist() == [[1.0, 1.0]]
    assert log_pi.item() == pytest.approx(2 * (120 - 2 * math.log(2)) - math.log(2 * math.pi))
    (gradient,) = torch.autograd.grad(log_pi.sum(), mean)
    assert gradient.tolist() == [[-2.0, 2.0]]


def test_steps_that_are_none_do_not_count_whatever_they_hold() -> None:
    trained = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([[1.0, math.nan], [2.0, 6.0]])
    assert losses.mean_where(values, trained).item() == 3.0
    both = values.expand(2, 2, 2)
    errors = losses.absolute_errors(both, torch.zeros(2, 2), trained)
    assert errors.tolist() == [1.0, 4.0]
    loss = losses.critic_loss(both, torch.zeros(2, 2), torch.tensor([2.0, 0.5]), trained)
    assert loss.item() == pytest.approx((2 * 1 + 0.5 * 4 + 0.5 * 36) / 3)
