"""The fleet: what messages say of their rovers, with clocks, gaps, quotas and losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import unhurried

from rl_cluster.streams import fleet as fleet_module
from rl_cluster.streams.codec import Experience, Metadata
from rl_cluster.streams.episodes import FinishedEpisode
from rl_cluster.streams.fleet import BURST_S, MAX_ROVERS, Fleet, RoverStatus
from rl_cluster.streams.identity import identity_of

DAY_S = 86_400.0
PUBLISHED_S = 1.75e9
VIEW = np.zeros((64, 2, 128, 128), np.float32)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Field:
    """A fleet, and rovers that send to it."""

    def __init__(self, quota_steps_per_s: float | None = None) -> None:
        self.clock = Clock()
        self.fleet = Fleet(quota_steps_per_s, self.clock)
        self.sent = 0

    def send(
        self,
        rewards: list[float],
        *,
        dones: tuple[int, ...] = (),
        evals: bool | list[bool] = False,
        message: str | None = None,
        **metadata: Any,
    ) -> bool:
        """A message of some steps; `dones` are the places of ends."""
        self.sent += 1
        experience = steps_of(rewards, dones, evals, Metadata(**metadata))
        fresh = None if metadata.get("sequence") is not None else f"unnumbered {self.sent}"
        identity = identity_of(b"", message or fresh, experience.metadata)
        return self.fleet.take(experience, message=identity, published_s=PUBLISHED_S)

    def status(self, rover: str = "r1") -> RoverStatus:
        return next(each for each in self.fleet.status() if each.rover == rover)

    def returns(self) -> list[float]:
        return [each.total_reward for each in self.fleet.take_finished()]


def steps_of(
    rewards: list[float], dones: tuple[int, ...], evals: bool | list[bool], metadata: Metadata
) -> Experience:
    count = len(rewards)
    return Experience(
        VIEW[:count],
        np.zeros((count, 6), np.float32),
        np.zeros((count, 2), np.float32),
        np.array(rewards, np.float32),
        np.isin(np.arange(count), dones),
        np.zeros(count, np.bool_) | evals,
        metadata,
    )


# Episodes ------------------------------------------------------------------------------------


def test_an_episode_is_put_together_from_the_messages_that_hold_it() -> None:
    field = Field()
    field.send([0.5, 0.25], rover_id="r1", sequence=0, policy_version=4)
    assert (field.status().episode_steps, field.status().episode_return) == (2, 0.75)
    field.send([0.25, 1, -1], dones=(0,), rover_id="r1", sequence=1, policy_version=4)
    assert field.fleet.take_finished() == [FinishedEpisode("r1", 1.0, 3, False, 4, True)]
    field.send([0.5], dones=(0,), rover_id="r1", sequence=2, policy_version=4)
    assert field.returns() == [0.5] and field.returns() == []
    assert (field.status().episodes, field.status().mean_return) == (2, 0.75)


def test_several_episodes_of_one_message_and_an_end_at_its_last_step() -> None:
    field = Field()
    field.send([1, 1, 0.5], dones=(0, 1, 2), rover_id="r1", sequence=0)
    assert field.returns() == [1, 1, 0.5] and field.status().episode_steps == 0


def test_evaluation_is_told_apart_and_an_episode_of_both_has_no_return() -> None:
    field = Field()
    field.send([1, 1], dones=(0, 1), evals=[True, False], rover_id="r1", sequence=0)
    assert [each.is_eval for each in field.fleet.take_finished()] == [True, False]
    field.send([1, 1], dones=(1,), evals=[True, False], rover_id="r1", sequence=1)
    assert field.returns() == []
    status = field.status()
    assert (status.episodes, status.eval_episodes, status.broken_episodes) == (1, 1, 1)
    assert (status.steps, status.eval_steps) == (4, 2)
    assert (status.mean_return, status.mean_eval_return) == (1, 1)


def test_an_episode_of_two_policies_is_of_none() -> None:
    field = Field()
    field.send([1], rover_id="r1", sequence=0, policy_version=4)
    field.send([1, 1], dones=(0, 1), rover_id="r1", sequence=1, policy_version=5)
    assert [each.policy_version for each in field.fleet.take_finished()] == [None, 5]
    assert field.status().policy_version == 5


def test_an_episode_that_began_before_we_listened_has_no_return() -> None:
    field = Field()
    field.send([1, 0.5], dones=(0, 1), rover_id="r1", sequence=77)
    assert field.returns() == [0.5] and field.status().broken_episodes == 1


def test_a_gap_breaks_the_episode_that_it_is_in_and_the_next_one_is_whole() -> None:
    field = Field()
    field.send([1], rover_id="r1", sequence=0)
    field.send([1, 0.5], dones=(0, 1), rover_id="r1", sequence=4)
    assert field.returns() == [0.5]
    status = field.status()
    assert (status.gaps, status.lost_messages, status.broken_episodes) == (1, 3, 1)


def test_a_gap_behind_an_end_hides_the_start_of_what_follows() -> None:
    field = Field()
    field.send([1], dones=(0,), rover_id="r1", sequence=0)
    field.send([1], dones=(0,), rover_id="r1", sequence=2)
    assert field.returns() == [1] and field.status().broken_episodes == 1


def test_a_late_message_is_counted_and_joins_nothing() -> None:
    field = Field()
    for sequence in (0, 1, 3, 2, 4):
        field.send([0.5], rover_id="r1", sequence=sequence)
    status = field.status()
    assert (status.messages, status.steps, status.gaps, status.lost_messages) == (5, 5, 1, 0)
    field.send([0.5], dones=(0,), rover_id="r1", sequence=5)
    assert field.returns() == [] and field.status().gaps == 1


def test_a_rover_that_vanishes_mid_episode_and_starts_again() -> None:
    field = Field()
    field.send([0.5] * 3, rover_id="r1", sequence=0)
    field.clock.now_s += 600
    status = field.status()
    assert (status.last_seen_age_s, status.episode_steps, status.restarts) == (600, 3, 0)
    field.send([1], dones=(0,), rover_id="r1", sequence=0, message="after the restart")
    assert field.returns() == [1]
    status = field.status()
    assert (status.restarts, status.broken_episodes, status.last_seen_age_s) == (1, 1, 0)


def test_a_rover_that_only_stood_still_goes_on_with_its_episode() -> None:
    field = Field()
    field.send([0.5], rover_id="r1", sequence=0)
    field.clock.now_s += 600
    field.send([0.5], dones=(0,), rover_id="r1", sequence=1)
    assert field.returns() == [1]


def test_counting_anew_from_another_number_starts_with_a_part() -> None:
    field = Field()
    field.send([0.5], rover_id="r1", sequence=5_000)
    field.send([0.5, 1], dones=(0, 1), rover_id="r1", sequence=9)
    assert field.returns() == [1]
    assert (field.status().restarts, field.status().broken_episodes) == (1, 2)


def test_without_numbers_episodes_are_put_together_but_nobody_knows_that_they_are_whole() -> None:
    field = Field()
    field.send([1, 0.5], dones=(0,))  # whose start we did not see
    field.send([0.5, 0.25], dones=(0, 1))
    finished = field.fleet.take_finished()
    assert [(each.rover, each.total_reward, each.whole) for each in finished] == [
        ("?", 1.0, False), ("?", 0.25, True)
    ]  # fmt: skip


def test_a_message_that_comes_again_changes_nothing() -> None:
    field = Field(quota_steps_per_s=1)
    assert field.send([1] * 9, rover_id="r1", sequence=0)
    before = field.status()
    assert field.send([1] * 9, rover_id="r1", sequence=0)
    assert field.status() == dataclasses.replace(before, repeated=1)


def test_rovers_do_not_mix() -> None:
    field = Field()
    for sequence in range(2):
        field.send([0.5], dones=(0,) * sequence, rover_id="b", sequence=sequence)
        field.send([0.25], dones=(0,) * sequence, rover_id="a", sequence=sequence)
    finished = {each.rover: each.total_reward for each in field.fleet.take_finished()}
    assert finished == {"a": 0.5, "b": 1.0}
    assert [each.rover for each in field.fleet.status()] == ["a", "b"]


# Clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S, 0.0, 0.25])
def test_a_rovers_clock_is_shown_and_decides_nothing(off_s: float) -> None:
    field, right = Field(quota_steps_per_s=5), Field(quota_steps_per_s=5)
    for sequence in range(6):
        for each, wrong_s in ((field, off_s), (right, 0.0)):
            each.clock.now_s += 1
            each.send(
                [0.5] * 20,
                dones=(3,),
                rover_id="r1",
                sequence=sequence,
                sent_at_s=PUBLISHED_S + wrong_s,
            )
    assert field.status().clock_skew_s == off_s
    assert field.status() == dataclasses.replace(right.status(), clock_skew_s=off_s)
    assert field.status().refused_steps > 0 and field.returns() == right.returns()


def test_a_rover_without_a_clock_has_no_skew() -> None:
    field = Field()
    field.send([1], rover_id="r1", sequence=0)
    assert field.status().clock_skew_s is None


# Quotas --------------------------------------------------------------------------------------


def test_what_is_over_the_quota_is_counted_and_not_learned_from() -> None:
    field = Field(quota_steps_per_s=32)
    answers = [field.send([0.5] * 64, rover_id="r1", sequence=k) for k in range(20)]
    burst = int(BURST_S * 32 / 64)
    assert answers == [True] * burst + [False] * (20 - burst)
    status = field.status()
    assert (status.steps, status.refused_steps) == (20 * 64, (20 - burst) * 64)
    assert status.episode_return == 20 * 32  # its episodes are known all the same
    field.clock.now_s += 2.0
    assert [field.send([0] * 64, rover_id="r1", sequence=20 + k) for k in range(2)] == [True, False]


def test_a_message_of_more_steps_than_the_burst_leaves_a_debt() -> None:
    field = Field(quota_steps_per_s=1)  # ten steps at once
    assert field.send([0] * 64, rover_id="r1", sequence=0)
    for waited_s, taken in ((53.0, False), (2.0, True)):
        field.clock.now_s += waited_s
        sequence = int(field.clock.now_s)
        assert field.send([0] * 64, rover_id="r1", sequence=sequence) is taken


def test_evaluation_needs_no_quota_and_each_rover_has_its_own() -> None:
    field = Field(quota_steps_per_s=1)
    assert field.send([0] * 64, rover_id="r1", sequence=0)
    assert not field.send([0] * 64, rover_id="r1", sequence=1)
    assert field.send([0] * 64, evals=True, rover_id="r1", sequence=2)
    assert field.send([0] * 64, rover_id="r2", sequence=0)


def test_a_refused_message_is_refused_again() -> None:
    field = Field(quota_steps_per_s=1)
    field.send([0] * 64, rover_id="r1", sequence=0)
    assert not field.send([0] * 64, rover_id="r1", sequence=1)
    field.clock.now_s += 1e6
    assert not field.send([0] * 64, rover_id="r1", sequence=1)


@given(
    st.floats(0.5, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 64)), min_size=1, max_size=40),
)
@settings(unhurried)
def test_over_time_nobody_gets_more_than_the_quota(
    quota: float, sendings: list[tuple[float, int]]
) -> None:
    field = Field(quota_steps_per_s=quota)
    learned, start_s = 0, field.clock.now_s
    for sequence, (waited_s, steps) in enumerate(sendings):
        field.clock.now_s += waited_s
        taken = field.send([0] * steps, rover_id="r1", sequence=sequence)
        learned += steps if taken else 0
        allowed = quota * (BURST_S + field.clock.now_s - start_s)
        assert learned < allowed + 64 + 1e-6  # the last one may leave a debt
    assert field.status().refused_steps == sum(steps for _, steps in sendings) - learned


# Bounds --------------------------------------------------------------------------------------


def test_of_more_rovers_than_there_can_be_the_silent_ones_are_forgotten() -> None:
    field = Field()
    field.send([1], rover_id="the first", sequence=0)
    for k in range(MAX_ROVERS):
        field.send([1], rover_id=f"r{k}", sequence=0)
        if k == MAX_ROVERS // 2:
            field.send([1], rover_id="r0", sequence=1)
    names = {each.rover for each in field.fleet.status()}
    assert len(names) == MAX_ROVERS and "the first" not in names and "r0" in names
    field.send([1], rover_id="the last", sequence=0)
    names = {each.rover for each in field.fleet.status()}
    assert {"r0", "r2", "the last"} <= names and "r1" not in names


def test_episodes_that_nobody_asks_for_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_FINISHED", 10)
    field = Field()
    for sequence in range(9):
        field.send([sequence / 16] * 3, dones=(0, 1, 2), rover_id="r1", sequence=sequence)
    assert field.returns() == [5 / 16] + [6 / 16] * 3 + [7 / 16] * 3 + [8 / 16] * 3


def test_messages_are_forgotten_after_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_RECENT", 3)
    field = Field()
    for sequence in (0, 1, 2, 3, 0):
        field.send([1], rover_id="r1", sequence=sequence)
    assert (field.status().repeated, field.status().messages) == (0, 5)
    field.send([1], rover_id="r1", sequence=2)
    assert field.status().repeated == 1


# Against a plain loop ------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sets(st.integers(0, 5)), st.sampled_from([1, 1, 1, 2, 5])),
        min_size=1,
        max_size=15,
    )
)
@settings(unhurried)
def test_returns_are_those_of_the_episodes_that_arrived_whole(
    messages: list[tuple[int, set[int], int]],
) -> None:
    """The rover's own sums, where no message between an episode's first and last was lost."""
    field, expected, rng = Field(), [], np.random.default_rng(0)
    sequence, whole, total = -1, True, 0.0
    for steps, dones, skip in messages:
        sequence += skip
        whole = whole and skip == 1
        rewards = rng.integers(-8, 9, steps) / 8
        for t in range(steps):
            total += float(rewards[t])
            if t in dones:
                expected += [total] if whole else []
                whole, total = True, 0.0
        field.send(rewards.tolist(), dones=tuple(dones), rover_id="r1", sequence=sequence)
    assert field.returns() == expected
