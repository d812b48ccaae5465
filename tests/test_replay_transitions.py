"""Transitions of a block, against plain loops over the whole stream and against worked examples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from naive_replay import Cut, Row, build, cuts, rules, streams, transition_at, unhurried

from rl_cluster.replay.transitions import BlockTransitions, TransitionRule, block_transitions


def episode(*rewards: float, truncated: bool = False) -> list[Row]:
    """One episode; the reset row comes with the first of the rewards."""
    last = len(rewards) - 1
    return [
        Row(
            observation=np.array([10 * len(rewards) + k], np.uint8),
            action=k,
            reward=np.float32(reward),
            terminated=k == last and not truncated,
            truncated=k == last and truncated,
            first=k == 0,
            policy_version=0,
        )
        for k, reward in enumerate(rewards)
    ]


def only_block(rows: list[Row], rule: TransitionRule) -> BlockTransitions:
    """All rows but the tail as one block."""
    length = len(rows) - rule.n_step
    (block,) = build(rows, Cut(length, length), rule)
    return block_transitions(block, rule)


def stacks(found: BlockTransitions, rows: np.ndarray) -> list[list[int]]:
    """Frames, as numbers, of (core, stack) rows."""
    frames: list[list[int]] = found.observations[rows][..., 0].tolist()
    return frames


@given(streams(), cuts, rules)
@settings(unhurried, max_examples=250)
def test_every_start_row_gives_its_transition_exactly_once(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    met: list[int] = []
    for block in build(rows, cut, rule):
        found = block_transitions(block, rule)
        for row in np.flatnonzero(block.starts).tolist():
            at = cut.start(block.sequence) + row
            expected = transition_at(rows, at, rule)
            s_tm1 = block.observations[found.rows_tm1[row]]
            s_t = block.observations[found.rows_t[row]]
            np.testing.assert_array_equal(s_tm1, expected.s_tm1)
            np.testing.assert_array_equal(s_t, expected.s_t)
            assert found.actions[row] == expected.a_tm1
            assert found.rewards[row].tobytes() == expected.r_t.tobytes()
            assert found.discounts[row].tobytes() == expected.discount_t.tobytes()
            met.append(at)
    sealed = cut.sealed_rows(len(rows), rule.n_step)
    assert met == [at for at in range(sealed) if not rows[at].ends]


@given(streams(), cuts, rules)
@unhurried
def test_no_transition_leaves_its_episode(rows: list[Row], cut: Cut, rule: TransitionRule) -> None:
    episodes = np.cumsum([row.first for row in rows])
    for block in build(rows, cut, rule):
        found = block_transitions(block, rule)
        for row in np.flatnonzero(block.starts).tolist():
            used = np.concatenate([found.rows_tm1[row], found.rows_t[row]])
            streamed = block.observations[used, 1]  # the frame's second number is its row
            assert len(set(episodes[streamed])) == 1


@given(streams(), cuts, rules)
@unhurried
def test_contiguous_says_that_both_stacks_are_one_run_of_rows(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    for block in build(rows, cut, rule):
        found = block_transitions(block, rule)
        for row in np.flatnonzero(block.starts).tolist():
            runs = [
                np.array_equal(used[row], np.arange(used[row, 0], used[row, 0] + rule.frame_stack))
                for used in (found.rows_tm1, found.rows_t)
            ]
            assert found.contiguous[row] == all(runs)


def test_arrays_have_their_documented_types() -> None:
    rows = episode(0, 1, 2) + episode(0, 1, 2, 3)
    found = only_block(rows, TransitionRule(4, 3, 0.99, 1.0))
    assert found.rows_tm1.shape == found.rows_t.shape == (4, 4)
    assert found.rows_tm1.dtype == found.rows_t.dtype == np.int32
    assert found.contiguous.dtype == np.bool_ and found.contiguous.shape == (4,)
    assert found.actions.dtype == np.int64
    assert found.rewards.dtype == found.discounts.dtype == np.float32
    assert found.source == "env"


def test_a_termination_cuts_the_return_and_the_bootstrap() -> None:
    rows = episode(99, 1, 2, 4) + episode(99, 50, 50)
    found = only_block(rows, TransitionRule(2, 3, 0.5, None))
    assert found.rewards[:3].tolist() == [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4]
    assert found.discounts[:3].tolist() == [0, 0, 0]


def test_a_truncation_cuts_the_return_and_bootstraps_from_its_own_row() -> None:
    rows = episode(99, 1, 2, 4, truncated=True) + episode(99, 50, 50, 50)
    found = only_block(rows, TransitionRule(2, 3, 0.5, None))
    assert found.rewards[:3].tolist() == [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4]
    assert found.discounts[:3].tolist() == [0.125, 0.25, 0.5]
    assert stacks(found, found.rows_t)[:3] == [[42, 43], [42, 43], [42, 43]]


def test_at_the_start_of_an_episode_the_reset_frame_fills_the_stack() -> None:
    rows = episode(0, 0, 0) + episode(0, 0, 0, 0, 0, 0)
    found = only_block(rows, TransitionRule(3, 1, 0.9, None))
    assert stacks(found, found.rows_tm1)[:2] == [[30, 30, 30], [30, 30, 31]]
    assert stacks(found, found.rows_tm1)[3:6] == [[60, 60, 60], [60, 60, 61], [60, 61, 62]]
    assert stacks(found, found.rows_t)[3:6] == [[60, 60, 61], [60, 61, 62], [61, 62, 63]]


@pytest.mark.parametrize(("clip", "expected"), [(None, -7.0), (1.0, 0.0), (2.5, -1.5)])
def test_each_reward_is_clipped_before_the_sum(clip: float | None, expected: float) -> None:
    rows = episode(0, 1, -8, 0, 0)
    found = only_block(rows, TransitionRule(1, 2, 1.0, clip))
    assert found.rewards[0] == expected


def test_the_block_is_only_read() -> None:
    rows = episode(0, 5, -5, 5) + episode(0, 5, 5, 5, 5)
    rule = TransitionRule(4, 2, 0.99, 1.0)
    (block,) = build(rows, Cut(6, 6), rule)
    for field in dataclasses.fields(block):
        value = getattr(block, field.name)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    assert block_transitions(block, rule).observations is block.observations
