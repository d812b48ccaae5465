"""Soft actor-critic's targets and losses as pure functions (Haarnoja et al. 2018, "SAC and
applications").

Invariant: nothing here holds state or knows where data comes from. Shapes: B sequences of T rows,
of which S from row `burn_in` on are trained; A numbers in an action. Row k holds what arrived with
observation k, so the result of the action at row k is the reward of row k + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Returns:
    """n-step returns of the trained rows before their bootstrap."""

    rewards: Tensor
    """(B, S) float32: Σ γ^{i-1} r_{t+i}, up to an end or the last valid row."""
    discounts: Tensor
    """(B, S) float32: discount of the bootstrap, 0 at terminal rows."""
    rows: Tensor
    """(B, S) int64: the rows that they end at."""
    trained: Tensor
    """(B, S) bool: steps that there are; the rest is meaningless."""


def n_step_returns(
    rewards: Tensor,
    terminal: Tensor,
    ends: Tensor,
    valid: Tensor,
    *,
    burn_in: int,
    unroll: int,
    n_step: int,
    discount: float,
) -> Returns:
    """Returns of rows burn_in to burn_in + unroll - 1 (Sutton & Barto 2018, eq. 12.1).

    A return ends early at an episode's end and at the last valid row; it bootstraps there, unless
    the row is terminal. The policy's entropy counts at the bootstrap only.

    Args:
      rewards: (B, T) float32. terminal, ends, valid: (B, T) bool. T = burn_in + unroll + n_step.
    """
    trained_rows = slice(burn_in, burn_in + unroll)
    total = torch.zeros_like(rewards[:, trained_rows])
    steps = torch.zeros_like(total, dtype=torch.int64)
    going = valid[:, trained_rows] & ~ends[:, trained_rows]
    trained = going & valid[:, burn_in + 1 : burn_in + unroll + 1]
    for i in range(1, n_step + 1):
        rows = slice(burn_in + i, burn_in + i + unroll)
        going = going & valid[:, rows]
        total = total + torch.where(going, discount ** (i - 1) * rewards[:, rows], 0.0)
        steps = steps + going
        going = going & ~ends[:, rows]
    last = torch.arange(burn_in, burn_in + unroll, device=rewards.device) + steps
    powers = torch.pow(discount, steps.float())
    return Returns(total, powers * ~terminal.gather(1, last), last, trained)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(..., A) actions tanh(u), u = μ + σ noise, and (...) their log π (appendix C, eq. 26).

    log (1 - tanh² u) is taken as 2 (log 2 - u - softplus(-2 u)), which holds where tanh is ±1 to
    the last bit.
    """
    before = mean + log_std.exp() * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    squashed = 2 * (math.log(2) - before - F.softplus(-2 * before))
    return torch.tanh(before), (gaussian - squashed).sum(-1)


def soft_targets(returns: Returns, values: Tensor, log_pi: Tensor, alpha: Tensor) -> Tensor:
    """(B, S) targets r + γ (min_i Q_i'(s', a') - α log π(a'|s')) (eq. 5 and 7).

    Args:
      values: (2, B, S) target critics where the returns end. log_pi: (B, S). alpha: ().
    """
    return returns.rewards + returns.discounts * (values.amin(0) - alpha * log_pi)


def mean_where(values: Tensor, trained: Tensor) -> Tensor:
    """Scalar mean over the steps that there are."""
    return torch.where(trained, values, 0.0).sum() / trained.sum().clamp(min=1)


def critic_loss(values: Tensor, targets: Tensor, weights: Tensor, trained: Tensor) -> Tensor:
    """Scalar: squared errors of both critics, weighted, over the trained steps (eq. 5).

    Args:
      values: (2, B, S). targets: (B, S), taken as constants. weights: (B,) importance weights.
    """
    errors = (values - targets.detach()).square().sum(0)
    return mean_where(0.5 * weights[:, None] * errors, trained)


def actor_loss(values: Tensor, log_pi: Tensor, alpha: Tensor, trained: Tensor) -> Tensor:
    """Scalar: α log π - min_i Q_i of actions drawn anew (eq. 9).

    Args:
      values: (2, B, S). log_pi: (B, S). alpha: (), taken as a constant.
    """
    return mean_where(alpha.detach() * log_pi - values.amin(0), trained)


def temperature_loss(
    log_alpha: Tensor, log_pi: Tensor, target_entropy: float, trained: Tensor
) -> Tensor:
    """Scalar: -α (log π + target entropy); grows α where the policy is too certain (eq. 18)."""
    return mean_where(-log_alpha.exp() * (log_pi.detach() + target_entropy), trained)


def absolute_errors(values: Tensor, targets: Tensor, trained: Tensor) -> Tensor:
    """(B,) mean |δ| of a sequence's trained steps, over both critics; 0 where there are none."""
    sizes = (values - targets).abs().mean(0)
    counted = torch.where(trained, sizes, 0.0).sum(1)
    return counted / trained.sum(1).clamp(min=1)
