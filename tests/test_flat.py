"""Flat vectors of parameters, and the acting policy that takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_samples import ACTIONS, IMAGE, VECTOR, network
from torch import nn

from rl_cluster.agents.flat import flatten, load_flat
from rl_cluster.agents.policy import GreedyPolicy


def observations(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, *VECTOR)).astype(np.float32)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_a_second_network_becomes_the_first_bit_for_bit(shape: tuple[int, ...]) -> None:
    first, second = network(shape), network(shape)
    load_flat(second, flatten(first))
    for own, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_vector_holds_every_parameter_in_the_module_s_order() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(3.0)
    flat = flatten(layer)
    assert flat.tolist() == [1, 2, 3]
    assert flat.dtype == np.float32


def test_the_vector_is_a_copy_both_ways() -> None:
    layer = nn.Linear(2, 1, bias=False)
    flat = flatten(layer)
    kept = flat.copy()
    with torch.no_grad():
        layer.weight += 1.0
    assert np.array_equal(flat, kept)
    load_flat(layer, flat)
    flat += 5.0
    assert layer.weight.detach().numpy().ravel().tolist() == kept.tolist()


def test_a_read_only_vector_is_taken_and_stays_as_it_was() -> None:
    source, other = network(), network()
    flat = flatten(source)
    flat.flags.writeable = False
    kept = flat.copy()
    load_flat(other, flat)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1.0
    assert np.array_equal(flat, kept)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused_and_nothing_changes(change: int) -> None:
    source = network()
    before = flatten(source)
    wrong = np.zeros(len(before) + change, np.float32)
    with pytest.raises(ValueError, match=f"of {len(before)} parameters.*another architecture"):
        load_flat(source, wrong)
    assert np.array_equal(flatten(source), before)


def test_a_matrix_of_the_right_size_is_refused() -> None:
    source = network()
    with pytest.raises(ValueError, match="do not fit"):
        load_flat(source, flatten(source)[None])


def test_the_policy_takes_the_best_action_of_the_weights_it_was_given() -> None:
    source = network()
    policy = GreedyPolicy(network(), bfloat16=False)
    policy.load(flatten(source))
    seen = observations(32)
    wanted = source(torch.from_numpy(seen)).argmax(1).numpy()
    actions = policy.actions(seen)
    assert actions.dtype == np.int64
    assert np.array_equal(actions, wanted)
    assert set(actions.tolist()) <= set(range(ACTIONS))


def test_acting_changes_no_weight() -> None:
    acting = network()
    policy = GreedyPolicy(acting, bfloat16=True)
    before = flatten(acting)
    policy.actions(observations(16))
    assert np.array_equal(flatten(acting), before)


def test_the_policy_refuses_weights_of_another_network() -> None:
    policy = GreedyPolicy(network(), bfloat16=False)
    with pytest.raises(ValueError, match="another architecture"):
        policy.load(flatten(network(hidden=9)))
