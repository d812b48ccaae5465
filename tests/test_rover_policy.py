from __future__ import annotations

import numpy as np
import pytest
from onnx_policies import BROKEN, sound, too_big

from envs.rover.pilot import EVAL_EVERY, NOISE, Pilot
from envs.rover.policy import Policy, PolicyError, State
from envs.rover.vehicle import SimulatedRover
from envs.rover.wire import NO_POLICY, ModelUpdate
from envs.rover.world import BEV_SHAPE, PROPRIO

BEV, PROPRIOCEPTION = np.zeros(BEV_SHAPE, np.float32), np.zeros(PROPRIO, np.float32)


def policy(version: int = 1, **settings: object) -> Policy:
    return Policy(ModelUpdate(sound(**settings), version))


def act(pilot: Pilot, steps: int) -> np.ndarray:
    return np.stack([pilot.act(BEV, PROPRIOCEPTION) for _ in range(steps)])


def test_sound_policy_acts_and_hands_its_state_on() -> None:
    action, state = policy().act(BEV, PROPRIOCEPTION, State.zero())
    np.testing.assert_allclose(action, np.tanh([0.5, -0.5]), rtol=1e-6)
    _, state = policy().act(BEV, PROPRIOCEPTION, state)
    assert (state.hx == 2).all() and (state.cx == 0).all()


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_policy_is_refused(fault: str) -> None:
    with pytest.raises(PolicyError):
        Policy(ModelUpdate(BROKEN[fault], 1))


def test_policy_beyond_the_size_limit_is_refused() -> None:
    with pytest.raises(PolicyError, match="bytes, want at most"):
        Policy(ModelUpdate(too_big(), 1))


@pytest.mark.parametrize("fault", ["external data", "external data in a branch"])
def test_external_data_is_refused_before_it_is_loaded(fault: str) -> None:
    with pytest.raises(PolicyError, match="lies in another file"):
        Policy(ModelUpdate(BROKEN[fault], 1))


def test_random_tracks_until_the_first_policy() -> None:
    pilot = Pilot(seed=1)
    for _ in range(2 * EVAL_EVERY):
        assert pilot.version == NO_POLICY and not pilot.is_eval
        pilot.start_episode()
    actions = act(pilot, 500)
    assert abs(actions.mean()) < 0.1 and np.abs(actions).max() > 0.9


def test_policy_takes_over_at_the_next_batch_with_noise() -> None:
    pilot = Pilot(seed=1)
    pilot.offer(policy(version=7))
    assert pilot.version == NO_POLICY
    pilot.start_batch()
    assert pilot.version == 7
    noise = act(pilot, 4000) - np.tanh([0.5, -0.5])
    assert 0.7 * NOISE < noise.std() < 1.3 * NOISE
    assert np.abs(noise.mean(axis=0)).max() < 0.1


def test_every_sixth_episode_is_deterministic_and_keeps_its_policy() -> None:
    pilot = Pilot(seed=1)
    pilot.offer(policy(version=1))
    pilot.start_batch()
    turns = []
    for _ in range(2 * EVAL_EVERY):
        turns.append(pilot.is_eval)
        pilot.start_episode()
    assert turns == ([False] * (EVAL_EVERY - 1) + [True]) * 2
    while not pilot.is_eval:
        pilot.start_episode()
    pilot.offer(policy(version=2, bias=(0.1, 0.1)))
    pilot.start_batch()
    np.testing.assert_allclose(act(pilot, 3), [np.tanh([0.5, -0.5])] * 3, rtol=1e-6)
    pilot.start_episode()
    pilot.start_batch()
    assert pilot.version == 2


def test_policy_that_fails_on_the_way_gives_way_to_random_tracks() -> None:
    pilot = Pilot(seed=1)
    pilot.offer(policy(version=1, fails_after=20))
    pilot.start_batch()
    actions = act(pilot, 200)
    assert np.isfinite(actions).all()
    assert pilot.version == NO_POLICY
    pilot.start_batch()
    assert pilot.version == NO_POLICY
    pilot.offer(policy(version=2))
    pilot.start_batch()
    assert pilot.version == 2


def test_each_message_of_a_rover_has_one_policy_version() -> None:
    pilot = Pilot(seed=3)
    rover = SimulatedRover("r", 3, pilot)
    messages = rover.run(32)
    pilot.offer(policy(version=1))
    messages += rover.run(64) + rover.rest()
    assert [(message.policy_version, message.steps) for message in messages] == [(-1, 64), (1, 32)]
