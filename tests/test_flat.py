"""Networks whose parameters are one vector, and the acting policy that takes such vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_samples import ACTIONS, IMAGE, VECTOR, flatten, network
from torch import nn

from rl_cluster.agents.flat import FlatNetwork, num_parameters
from rl_cluster.agents.policy import GreedyPolicy

DTYPES = [torch.float32, torch.bfloat16]


def observations(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, *VECTOR)).astype(np.float32)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_the_vector_holds_every_parameter_in_the_module_s_order(shape: tuple[int, ...]) -> None:
    made = network(shape)
    wanted = flatten(made)
    flat = FlatNetwork(made, torch.float32)
    assert flat.vector.dtype == torch.float32
    assert np.array_equal(flat.vector.numpy(), wanted)
    assert len(wanted) == num_parameters(made)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_a_second_network_becomes_the_first_bit_for_bit(shape: tuple[int, ...]) -> None:
    first, second = network(shape), FlatNetwork(network(shape), torch.float32)
    second.load(flatten(first))
    for own, other in zip(first.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_computes_with_the_vector_once_it_is_refreshed(dtype: torch.dtype) -> None:
    flat = FlatNetwork(nn.Linear(2, 1, bias=False), dtype)
    flat.vector.copy_(torch.tensor([2.0, 3.0]))
    flat.refresh()
    assert flat.network(torch.tensor([[1.0, 10.0]], dtype=dtype)).item() == 32.0


def test_parts_of_the_vector_are_refreshed_alone() -> None:
    flat = FlatNetwork(nn.Linear(2, 1, bias=False), torch.bfloat16)
    before = flat.network.weight[0, 1].item()
    flat.vector.fill_(7.0)
    flat.refresh(slice(0, 1))
    assert flat.network.weight.tolist() == [[7.0, before]]


def test_the_vector_keeps_what_a_bfloat16_network_cannot() -> None:
    flat = FlatNetwork(nn.Linear(1, 1, bias=False), torch.bfloat16)
    flat.vector.fill_(1.0)
    for _ in range(100):
        flat.vector += 1e-4  # lost each time in bfloat16, whose next number is 1.0078
        flat.refresh()
    assert flat.network.weight.item() == pytest.approx(1.01, abs=0.003)


@pytest.mark.parametrize("dtype", DTYPES)
def test_names_and_shapes_are_the_network_s_own(dtype: torch.dtype) -> None:
    made = network(IMAGE)
    wanted = {name: parameter.clone() for name, parameter in made.named_parameters()}
    flat = FlatNetwork(made, dtype)
    found = flat.named(flat.vector)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_read_only_vector_is_taken_and_stays_as_it_was(dtype: torch.dtype) -> None:
    source, other = network(), FlatNetwork(network(), dtype)
    flat = flatten(source).copy()
    flat.flags.writeable = False
    kept = flat.copy()
    other.load(flat)
    other.vector += 1.0
    assert np.array_equal(flat, kept)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused_and_nothing_changes(change: int) -> None:
    source = FlatNetwork(network(), torch.float32)
    before = source.vector.clone()
    wrong = np.zeros(len(before) + change, np.float32)
    with pytest.raises(ValueError, match=f"of {len(before)} parameters.*another architecture"):
        source.load(wrong)
    assert torch.equal(source.vector, before)


def test_a_matrix_of_the_right_size_is_refused() -> None:
    source = FlatNetwork(network(), torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        source.load(source.vector.numpy()[None])


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


def test_weights_by_name_are_those_of_the_vector() -> None:
    source, seen = network(), observations(32)
    by_name, by_vector = (GreedyPolicy(network(), bfloat16=True) for _ in range(2))
    by_name.load_named(source.state_dict())
    by_vector.load(flatten(source))
    assert np.array_equal(by_name.actions(seen), by_vector.actions(seen))


def test_a_policy_in_bfloat16_acts_nearly_as_the_exact_one() -> None:
    source, seen = network(), observations(256)
    exact, rounded = (GreedyPolicy(network(), bfloat16=low) for low in (False, True))
    for policy in (exact, rounded):
        policy.load(flatten(source))
    assert (exact.actions(seen) == rounded.actions(seen)).mean() > 0.9


def test_the_policy_refuses_weights_of_another_network() -> None:
    policy = GreedyPolicy(network(), bfloat16=False)
    with pytest.raises(ValueError, match="another architecture"):
        policy.load(flatten(network(hidden=9)))
