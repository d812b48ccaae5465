"""Blocks of messages: every known transition once, none over a gap, against a plain loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import assert_same_block, unhurried
from stream_messages import experience_of

from rl_cluster.replay.block import Block
from rl_cluster.replay.journal_format import decode, encode
from rl_cluster.streams.codec import Experience, Metadata
from rl_cluster.streams.cutting import BEV_NUMBERS, ROW, cut

LENGTH = 4


@dataclass(frozen=True)
class Step:
    """A transition, as bytes: what was seen, done, earned, and seen then (None: the end)."""

    seen: bytes
    done: bytes
    earned: float
    then: bytes | None


def observation(experience: Experience, t: int) -> np.ndarray:
    """(ROW,) float16."""
    return np.concatenate(
        [experience.bev[t].ravel(), experience.proprio[t]], dtype=np.float16, casting="unsafe"
    )


def naive_transitions(experience: Experience) -> list[Step]:
    """Step after step: one that is learned from has a result that the same message shows."""
    found = []
    for t in range(experience.steps):
        last, ends = t == experience.steps - 1, bool(experience.dones[t])
        if t in experience.metadata.truncated_steps:
            continue
        if experience.is_eval[t] or (not ends and (last or experience.is_eval[t + 1])):
            continue
        then = None if ends else observation(experience, t + 1).tobytes()
        seen, action = observation(experience, t).tobytes(), experience.actions[t].tobytes()
        found.append(Step(seen, action, float(experience.rewards[t]), then))
    return found


def transitions_in(block: Block) -> list[Step]:
    """By the meaning of a block's rows."""
    found = []
    for row in np.flatnonzero(block.starts) + block.context:
        ends = bool(block.terminated[row + 1])
        then = None if ends else block.observations[row + 1].tobytes()
        seen, action = block.observations[row].tobytes(), block.actions[row].tobytes()
        found.append(Step(seen, action, float(block.rewards[row + 1]), then))
    return found


def cut_up(experience: Experience, length: int = LENGTH) -> list[Block]:
    return cut(
        experience,
        source="rover:r1",
        message="m",
        position=9,
        policy_version=3,
        length=length,
    )


@st.composite
def messages(draw: st.DrawFn) -> Experience:
    """Steps with any ends, and runs of evaluation anywhere."""
    dones = draw(st.lists(st.sampled_from([False] * 4 + [True]), min_size=1, max_size=14))
    switches = draw(st.sets(st.integers(0, len(dones) - 1), max_size=3))
    is_eval = np.cumsum([t in switches for t in range(len(dones))]) % 2 == 1
    timed_out = tuple(t for t, done in enumerate(dones) if done and draw(st.booleans()))
    metadata = Metadata(truncated_steps=timed_out)
    return experience_of(dones, is_eval, metadata, seed=draw(st.integers(0, 99)))


@given(messages(), st.integers(1, 9))
@settings(unhurried, max_examples=60)
def test_every_known_transition_is_in_one_block_and_no_other(
    experience: Experience, length: int
) -> None:
    found = [step for block in cut_up(experience, length) for step in transitions_in(block)]
    assert found == naive_transitions(experience)


@given(messages(), st.integers(1, 9))
@settings(unhurried, max_examples=40)
def test_every_block_is_valid_and_says_where_it_comes_from(
    experience: Experience, length: int
) -> None:
    blocks = cut_up(experience, length)
    assert [block.message for block in blocks] == [f"m#{k}" for k in range(len(blocks))]
    for block in blocks:
        block.check_valid()
        assert (block.source, block.sequence, block.context) == ("rover:r1", 9, 0)
        assert block.core <= length and len(block.rewards) == block.core + 1
        assert block.schema == f"float16[{ROW}]"
        assert (block.actions.shape, block.actions.dtype) == ((block.core + 1, 2), np.float32)
        assert (block.policy_versions == 3).all() and block.policy_versions.dtype == np.int32
        assert not block.truncated.any() and not block.terminated[:-1].any()
        assert block.starts.all()


@given(messages(), st.integers(1, 9))
@settings(unhurried, max_examples=40)
def test_only_a_row_behind_an_end_in_the_same_message_is_first(
    experience: Experience, length: int
) -> None:
    learned = {step.seen for step in naive_transitions(experience)}
    seen = [observation(experience, t).tobytes() for t in range(experience.steps)]
    after_an_end = [
        seen[t]
        for t in range(1, experience.steps)
        if experience.dones[t - 1] and seen[t] in learned
    ]
    blocks = cut_up(experience, length)
    assert [b.observations[0].tobytes() for b in blocks if b.first[0]] == after_an_end
    assert not any(block.first[1:].any() for block in blocks)


@given(messages(), st.integers(1, 9), st.integers(1, 9))
@settings(unhurried, max_examples=25)
def test_neither_the_length_nor_the_journal_changes_what_is_learned(
    experience: Experience, length: int, other: int
) -> None:
    steps = [[s for b in cut_up(experience, n) for s in transitions_in(b)] for n in (length, other)]
    assert steps[0] == steps[1]
    for block in cut_up(experience, length):
        assert_same_block(decode(encode(1, block)), block)


# By hand -------------------------------------------------------------------------------------


def test_rewards_arrive_a_row_later_and_an_end_gets_a_row_of_its_own() -> None:
    experience = experience_of([False, False, True, False, False])
    first, second = cut_up(experience, 64)
    r = experience.rewards
    assert first.rewards.tolist() == [0, r[0], r[1], r[2]]
    assert first.terminated.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(first.observations[3], first.observations[2])
    assert (first.core, second.core) == (3, 1)
    assert second.rewards.tolist() == [0, r[3]]  # the last step's next observation is not here
    assert (first.first[0], second.first[0]) == (False, True)


def test_a_long_segment_becomes_blocks_that_overlap_by_a_row() -> None:
    experience = experience_of([False] * 9 + [True])
    blocks = cut_up(experience)
    assert [block.core for block in blocks] == [4, 4, 2]
    for one, other in zip(blocks[:-1], blocks[1:], strict=True):
        np.testing.assert_array_equal(one.observations[-1], other.observations[0])
        assert one.rewards[-1] == other.rewards[0]


@pytest.mark.parametrize(
    ("dones", "is_eval"),
    [([False], None), ([True, True], [True, True]), ([False] * 3, [False, True, False])],
)
def test_steps_whose_result_is_not_known_give_no_block(
    dones: list[bool], is_eval: list[bool] | None
) -> None:
    assert cut_up(experience_of(dones, is_eval)) == []


def test_a_lone_step_that_ends_its_episode_is_learned_from() -> None:
    (block,) = cut_up(experience_of([True]))
    assert (block.core, block.terminated.tolist()) == (1, [False, True])


def test_nothing_is_learned_from_the_step_at_which_time_was_up() -> None:
    """Its next observation was not sent, and the state behind it is worth something."""
    (block,) = cut_up(experience_of([False, False, True], metadata=Metadata(truncated_steps=(2,))))
    assert (block.core, block.terminated.tolist()) == (2, [False, False, False])


@pytest.mark.parametrize("dense", [False, True])
def test_the_row_is_the_view_in_c_order_and_then_the_rover_itself(dense: bool) -> None:
    experience = experience_of([True])
    experience.bev[0, 1, 5, 5] = -0.0
    if dense:
        experience.bev[:] = np.random.default_rng(0).normal(size=experience.bev.shape)
    row = cut_up(experience)[0].observations[0]
    assert row.shape == (ROW,) == (32_774,)
    view = row[:BEV_NUMBERS].reshape(2, 128, 128)
    assert view.tobytes() == experience.bev[0].astype(np.float16).tobytes()
    np.testing.assert_array_equal(row[BEV_NUMBERS:], experience.proprio[0].astype(np.float16))


def test_the_widest_values_that_are_let_through_stay_finite() -> None:
    experience = experience_of([True])
    experience.proprio[:] = 65504
    assert np.isfinite(cut_up(experience)[0].observations).all()


def test_a_block_is_in_memory_of_its_own() -> None:
    experience = experience_of([False, True])
    (block,) = cut_up(experience)
    before = block.observations.copy(), block.actions.copy(), block.rewards.copy()
    for array in (experience.bev, experience.proprio, experience.actions, experience.rewards):
        array[:] = -1
    for array, kept in zip((block.observations, block.actions, block.rewards), before, strict=True):
        np.testing.assert_array_equal(array, kept)
