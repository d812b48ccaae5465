"""Losses and targets: what the papers' formulas give, one transition at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.agents.losses import (
    double_q_learning_targets,
    huber,
    q_learning_targets,
    td_errors,
    weighted_loss,
)

VALUES = st.floats(-100, 100, width=32)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Rewards, discounts, actions, weights (B,) and three tables of action values (B, A)."""
    size, actions = draw(st.integers(1, 6)), draw(st.integers(1, 5))

    def array(values: st.SearchStrategy[float], *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        drawn = draw(st.lists(values, min_size=count, max_size=count))
        return np.array(drawn, np.float32).reshape(shape)

    return {
        "r_t": array(VALUES, size),
        "discount_t": array(st.sampled_from([0.0, 0.5, 0.970299]), size),
        "a_tm1": array(st.integers(0, actions - 1), size).astype(np.int64),
        "weights": array(st.floats(0, 1, width=32), size),
        "q_tm1": array(VALUES, size, actions),
        "q_t": array(VALUES, size, actions),
        "selector": array(VALUES, size, actions),
    }


def tensors(problem: dict[str, np.ndarray], *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(problem[name]) for name in names]


@given(problems())
def test_targets_are_those_of_a_loop_over_transitions(problem: dict[str, np.ndarray]) -> None:
    single, double = [], []
    for r, discount, q, selector in zip(
        *(problem[name] for name in ("r_t", "discount_t", "q_t", "selector")), strict=True
    ):
        single.append(r + discount * max(q))
        double.append(r + discount * q[int(np.argmax(selector))])
    found = q_learning_targets(*tensors(problem, "r_t", "discount_t", "q_t"))
    np.testing.assert_allclose(found, single, rtol=1e-6, atol=1e-6)
    found = double_q_learning_targets(*tensors(problem, "r_t", "discount_t", "q_t", "selector"))
    np.testing.assert_allclose(found, double, rtol=1e-6, atol=1e-6)


@given(problems())
def test_a_double_target_is_never_above_the_single_one(problem: dict[str, np.ndarray]) -> None:
    """Van Hasselt et al. 2016: choosing with one network and asking another only lowers."""
    single = q_learning_targets(*tensors(problem, "r_t", "discount_t", "q_t"))
    double = double_q_learning_targets(*tensors(problem, "r_t", "discount_t", "q_t", "selector"))
    assert (double <= single).all()
    same = double_q_learning_targets(*tensors(problem, "r_t", "discount_t", "q_t", "q_t"))
    assert torch.equal(same, single)


def test_double_q_picks_with_the_online_network_and_values_with_the_target() -> None:
    target, online = torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([[0.0, -1.0, 9.0]])
    r_t, discount_t = torch.tensor([10.0]), torch.tensor([0.5])
    assert double_q_learning_targets(r_t, discount_t, target, online).item() == 10 + 0.5 * 3
    assert q_learning_targets(r_t, discount_t, target).item() == 10 + 0.5 * 5


def test_a_terminal_state_is_worth_its_reward_alone() -> None:
    q_t = torch.full((1, 4), 1e6)
    r_t, discount_t = torch.tensor([-1.0]), torch.zeros(1)
    assert q_learning_targets(r_t, discount_t, q_t).item() == -1.0
    assert double_q_learning_targets(r_t, discount_t, q_t, q_t).item() == -1.0


@given(problems())
def test_td_errors_and_loss_are_those_of_a_loop(problem: dict[str, np.ndarray]) -> None:
    target, delta = problem["r_t"].astype(np.float64), 1.5
    total, wanted = 0.0, []
    for i, action in enumerate(problem["a_tm1"]):
        error = target[i] - float(problem["q_tm1"][i, action])
        wanted.append(error)
        inside = abs(error) <= delta
        loss = 0.5 * error**2 if inside else delta * (abs(error) - 0.5 * delta)
        total += float(problem["weights"][i]) * loss
    errors = td_errors(*tensors(problem, "q_tm1", "a_tm1", "r_t"))
    np.testing.assert_allclose(errors, wanted, rtol=1e-5, atol=1e-5)
    loss = weighted_loss(errors, torch.from_numpy(problem["weights"]), delta).item()
    assert loss == pytest.approx(total / len(wanted), rel=1e-4, abs=1e-5)


def test_the_gradient_reaches_the_taken_action_only_and_never_the_target() -> None:
    q_tm1 = torch.zeros(2, 3, requires_grad=True)
    target = torch.tensor([0.25, -0.5], requires_grad=True)
    errors = td_errors(q_tm1, torch.tensor([2, 0]), target)
    weighted_loss(errors, torch.ones(2), 1.0).backward()
    assert target.grad is None
    assert q_tm1.grad is not None
    assert q_tm1.grad.tolist() == [[0, 0, -0.125], [0.25, 0, 0]]


@pytest.mark.parametrize(("error", "loss"), [(0, 0), (0.5, 0.125), (1, 0.5), (2, 1.5), (-3, 2.5)])
def test_huber_is_half_a_square_up_to_one_and_a_line_from_there(error: float, loss: float) -> None:
    assert huber(torch.tensor(float(error)), 1.0).item() == loss


@given(VALUES, st.floats(0.125, 8, width=32))
def test_the_slope_of_huber_is_the_error_clipped(error: float, delta: float) -> None:
    """Mnih et al. 2015 clip the error term to [-1, 1]; in general to [-delta, delta]."""
    errors = torch.tensor([error], requires_grad=True)
    huber(errors, delta).sum().backward()
    assert errors.grad is not None
    assert errors.grad.item() == pytest.approx(float(np.clip(error, -delta, delta)), abs=1e-6)
    assert huber(errors, delta).item() == huber(-errors, delta).item()


@given(VALUES, st.floats(0.125, 8, width=32))
def test_huber_agrees_with_torch(error: float, delta: float) -> None:
    errors = torch.tensor([error])
    wanted = torch.nn.functional.huber_loss(errors, torch.zeros(1), delta=delta)
    assert huber(errors, delta).item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)


def test_importance_weights_scale_each_gradient_and_equal_ones_change_nothing() -> None:
    """Schaul et al. 2016, algorithm 1, line 12: the sum is of w_j δ_j ∇Q."""
    gradients = []
    for weights in (torch.ones(3), torch.tensor([1.0, 0.25, 0.0])):
        errors = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
        weighted_loss(errors, weights, 1.0).backward()
        assert errors.grad is not None
        gradients.append(errors.grad)
    assert torch.allclose(gradients[0], torch.full((3,), 0.5 / 3))
    assert torch.allclose(gradients[1], torch.tensor([0.5, 0.125, 0.0]) / 3)
