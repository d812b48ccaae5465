"""Shapes, memory and acting of soft actor-critic's networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sac_samples import RECURRENT, SHAPE, agent, sequences
from torch.nn.utils import parameters_to_vector

from rl_cluster.agents.sac_networks import SACShape, Trunk, build_actor
from rl_cluster.agents.sac_policy import RecurrentPolicy


def observations(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random((*size, SHAPE.row), np.float32)


def test_the_rovers_own_shape_is_the_default() -> None:
    shape = SACShape()
    assert shape.row == 2 * 128 * 128 + 6
    trunk = Trunk(shape)
    assert trunk.view[1].out_features == 1024
    assert trunk.memory is not None
    assert trunk.memory.hidden_size == 256


def test_a_run_of_rows_is_the_same_as_stepping_and_starts_anew_with_an_episode() -> None:
    trunk = Trunk(RECURRENT)
    rows = torch.from_numpy(observations(3, 5))
    goes_on = torch.ones(3, 5, dtype=torch.bool)
    goes_on[1, 3] = False
    found, last = trunk.remember(trunk.see(rows), goes_on, trunk.no_memory(3))
    hx, cx = trunk.no_memory(3)
    for t in range(5):
        keep = goes_on[:, t, None].float()
        known, hx, cx = trunk(*trunk.split(rows[:, t]), hx * keep, cx * keep)
        torch.testing.assert_close(found[:, t], known)
    torch.testing.assert_close(last, (hx, cx))
    alone, _ = trunk.remember(trunk.see(rows[1:2, 3:]), goes_on[:1, 3:], trunk.no_memory(1))
    torch.testing.assert_close(found[1, 3:], alone[0])


def test_without_a_memory_the_state_comes_back_as_it_was() -> None:
    policy = RecurrentPolicy(SHAPE)
    state = np.random.default_rng(1).random((2, 4, 256), np.float32)
    first = policy(observations(4), *state)
    assert np.array_equal(first[1], state[0])
    assert np.array_equal(first[2], state[1])
    assert np.array_equal(first[0], policy(observations(4), *policy.start(4))[0])


def test_a_policy_acts_alike_from_what_is_published_and_from_a_checkpoint() -> None:
    sac = agent(RECURRENT)
    sac.update(sequences(0, sac), 0)
    published, saved = RecurrentPolicy(RECURRENT), RecurrentPolicy(RECURRENT)
    published.load(sac.published.numpy())
    saved.load_named(sac.model_tensors())
    state = tuple(each + 0.5 for each in published.start(4))
    for found, wanted in zip(
        published(observations(4), *state), saved(observations(4), *state), strict=True
    ):
        assert np.array_equal(found, wanted)
        assert found.dtype == np.float32
    actions = published(observations(4), *state)[0]
    assert actions.shape == (4, 2)
    assert np.abs(actions).max() < 1


def test_a_batch_acts_as_each_of_its_rows_does() -> None:
    policy = RecurrentPolicy(RECURRENT)
    state = tuple(each + 0.5 for each in policy.start(4))
    together = policy(observations(4), *state)
    for i in range(4):
        alone = policy(observations(4)[i : i + 1], *(each[i : i + 1] for each in state))
        for found, wanted in zip(alone, together, strict=True):
            np.testing.assert_allclose(found[0], wanted[i], rtol=1e-5, atol=1e-6)


def test_another_policys_tensors_are_refused_and_change_nothing() -> None:
    policy = RecurrentPolicy(RECURRENT)
    before = parameters_to_vector(policy.actor.parameters()).clone()
    other = agent(replace(RECURRENT, hidden=15)).model_tensors()
    with pytest.raises(ValueError, match=r"at actor.heads.hidden.0.weight: it has \(15, 296\)"):
        policy.load_named(other)
    with pytest.raises(ValueError, match="it has nothing"):
        policy.load_named({})
    with pytest.raises(ValueError, match="another architecture"):
        policy.load(np.zeros(3, np.float32))
    assert torch.equal(parameters_to_vector(policy.actor.parameters()), before)


@pytest.mark.parametrize("channels", [(), (4, 4, 4, 4)])
def test_too_many_and_too_few_convolutions_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="conv_channels"):
        build_actor(replace(SHAPE, conv_channels=channels))


def test_a_view_too_small_for_its_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        build_actor(replace(SHAPE, conv_channels=(4, 4)))
