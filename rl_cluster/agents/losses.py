"""Losses and targets as pure functions, in the papers' names.

Invariant: nothing here holds state or knows where data comes from. Shapes: B transitions, A
actions; `_tm1` is before the action, `_t` after the (n-step) transition.
"""

from __future__ import annotations

from torch import Tensor


def q_learning_targets(r_t: Tensor, discount_t: Tensor, q_t: Tensor) -> Tensor:
    """(B,) targets r_t + γ_t max_a Q_target(s_t, a) (Mnih et al. 2015).

    Args:
      r_t: (B,) rewards of the transition (n-step sums).
      discount_t: (B,) discount of the bootstrap, 0 at terminal states.
      q_t: (B, A) target network at s_t.
    """
    return r_t + discount_t * q_t.amax(1)


def double_q_learning_targets(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor
) -> Tensor:
    """(B,) targets r_t + γ_t Q_target(s_t, argmax_a Q(s_t, a)) (van Hasselt et al. 2016, eq. 4).

    Args:
      r_t: (B,) rewards of the transition (n-step sums).
      discount_t: (B,) discount of the bootstrap, 0 at terminal states.
      q_t: (B, A) target network at s_t.
      q_t_selector: (B, A) online network at s_t.
    """
    a_t = q_t_selector.argmax(1, keepdim=True)
    return r_t + discount_t * q_t.gather(1, a_t).squeeze(1)


def td_errors(q_tm1: Tensor, a_tm1: Tensor, target_tm1: Tensor) -> Tensor:
    """(B,) δ = target - Q(s_tm1, a_tm1); no gradient flows into the target.

    Args:
      q_tm1: (B, A) online network at s_tm1.
      a_tm1: (B,) int64 actions.
      target_tm1: (B,) targets.
    """
    return target_tm1.detach() - q_tm1.gather(1, a_tm1[:, None]).squeeze(1)


def huber(errors: Tensor, delta: float) -> Tensor:
    """Elementwise Huber loss (Huber 1964): ½e² up to |e| = delta, linear from there."""
    size = errors.abs()
    quadratic = size.clamp(max=delta)
    return 0.5 * quadratic**2 + delta * (size - quadratic)


def weighted_loss(errors: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Scalar mean over the batch of importance weight × Huber loss (Schaul et al. 2016, alg. 1)."""
    return (weights * huber(errors, delta)).mean()
