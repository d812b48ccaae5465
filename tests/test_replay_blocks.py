"""Blocks: what a builder seals, and which blocks are refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from naive_replay import Cut, Row, append, build, cuts, rules, streams, unhurried

from rl_cluster.replay.block import Block, BlockBuilder
from rl_cluster.replay.transitions import TransitionRule

FIELDS = ("actions", "rewards", "terminated", "truncated", "first", "policy_versions")


def block_of(**changed: Any) -> Block:
    """A valid block of six rows: context 1, core 3, tail 2; an episode ends at row 2."""
    flags = np.arange(6) == 2
    block = Block(
        source="rollout:pong/0/env/3",
        sequence=5,
        context=1,
        core=3,
        observations=np.zeros((6, 84, 84), np.uint8),
        actions=np.zeros(6, np.int32),
        rewards=np.zeros(6, np.float32),
        terminated=flags,
        truncated=np.zeros(6, np.bool_),
        first=np.roll(flags, 1),
        policy_versions=np.arange(6, dtype=np.int32),
    )
    return dataclasses.replace(block, **changed)


def flags(*rows: int) -> np.ndarray:
    """(6,) bool, true at these rows."""
    return np.isin(np.arange(6), rows)


@given(streams(), cuts, rules)
@unhurried
def test_the_cores_of_the_blocks_are_the_rows_without_gap_or_repetition(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    blocks = build(rows, cut, rule)
    sealed = cut.sealed_rows(len(rows), rule.n_step)
    assert sum(block.core for block in blocks) == sealed
    assert [block.sequence for block in blocks] == list(range(len(blocks)))
    for block in blocks:
        core = slice(block.context, block.context + block.core)
        at = cut.start(block.sequence)
        own = rows[at : at + block.core]
        np.testing.assert_array_equal(
            block.observations[core], [row.observation for row in own], strict=False
        )
        for name in FIELDS:
            expected = [getattr(row, name.removesuffix("s")) for row in own]
            assert getattr(block, name)[core].tolist() == expected, name
        assert block.starts.tolist() == [not row.ends for row in own]


@given(streams(), cuts, rules)
@unhurried
def test_every_sealed_block_is_valid_and_holds_all_that_its_transitions_need(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    for block in build(rows, cut, rule):
        block.check_valid()
        assert block.context == rule.frame_stack - 1
        assert len(block.observations) == block.context + block.core + rule.n_step
        assert block.observations.dtype == rows[0].observation.dtype
        at = cut.start(block.sequence)
        around = range(max(0, at - block.context), at + block.core + rule.n_step)
        kept = block.observations[block.context - (at - around.start) :]
        np.testing.assert_array_equal(kept, [rows[k].observation for k in around])


@given(streams(), cuts, rules)
@unhurried
def test_a_block_is_sealed_by_the_last_row_it_needs(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    builder = BlockBuilder(
        "env",
        length=cut.length,
        context=rule.frame_stack - 1,
        tail=rule.n_step,
        first_length=cut.first_length,
    )
    sealed = 0
    for count, row in enumerate(rows, start=1):
        block = append(builder, row)
        assert (block is not None) == (cut.sealed_rows(count, rule.n_step) > sealed)
        sealed = cut.sealed_rows(count, rule.n_step)


def test_a_sealed_block_never_changes_while_its_builder_goes_on() -> None:
    builder = BlockBuilder("env", length=4, context=3, tail=2)
    blocks, copies = [], []
    for at in range(40):
        frame = np.full((2, 2), at, np.uint8)
        block = append(builder, Row(frame, at, np.float32(at), False, False, at == 0, at))
        frame[:] = 255  # the environment's memory, used again
        if block is not None:
            blocks.append(block)
            copies.append({k: np.copy(v) for k, v in vars(block).items()})
    assert len(blocks) == 9
    for block, copy in zip(blocks, copies, strict=True):
        for name, value in copy.items():
            np.testing.assert_array_equal(getattr(block, name), value)
    for one, other in itertools.pairwise(blocks):
        assert not np.shares_memory(one.observations, other.observations)


def test_a_builder_without_a_first_length_starts_with_a_whole_block() -> None:
    builder = BlockBuilder("env", length=5, context=0, tail=1)
    rows = [Row(np.zeros(1, np.float32), 0, np.float32(0), False, False, k == 0, 0) for k in "0123"]
    sealed = [append(builder, row) for row in [*rows, rows[-1], rows[-1]]]
    assert [block is not None for block in sealed] == [False] * 5 + [True]


def test_what_the_index_keeps_of_a_block_is_small_and_true() -> None:
    block = block_of()
    info = block.info()
    assert (info.source, info.sequence, info.schema) == (block.source, 5, "uint8[84,84]")
    assert info.starts.tolist() == [True, False, True] and info.transitions == 2
    assert info.policy_versions.tolist() == [1, 2, 3]
    assert info.nbytes == block.nbytes == 6 * (84 * 84 + 4 + 4 + 1 + 1 + 1 + 4)


def test_a_block_may_name_its_message_and_hold_actions_of_any_shape() -> None:
    assert (block_of().message, block_of().info().message) == ("", "")
    block = block_of(message="r1/7#0", actions=np.zeros((6, 2), np.float32))
    block.check_valid()
    assert block.info().message == "r1/7#0"
    assert block.nbytes == block_of().nbytes + 6 * 4


def test_the_schema_names_shape_and_dtype() -> None:
    assert block_of(observations=np.zeros((6, 4), np.float32)).schema == "float32[4]"
    assert block_of(observations=np.zeros(6, np.int16)).schema == "int16[]"


def test_a_truncation_is_an_end_as_well() -> None:
    block = block_of(terminated=flags(), truncated=flags(2))
    block.check_valid()
    assert block.starts.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"actions": np.zeros(5, np.int32)}, "actions has 5 rows, not 6"),
        ({"core": 0}, "core 0 does not fit"),
        ({"core": 6}, "core 6 does not fit"),
        ({"first": flags()}, "an end must be followed by a reset, and only an end"),
        ({"terminated": flags()}, "an end must be followed by a reset, and only an end"),
        ({"first": flags(3, 5)}, "an end must be followed by a reset, and only an end"),
        ({"truncated": flags(2)}, "an end must be followed by a reset, and only an end"),
        ({"actions": np.zeros((5, 2), np.float32)}, "actions has 5 rows, not 6"),
        ({"actions": np.full((6, 2), np.nan, np.float32)}, "actions are not finite"),
        ({"rewards": np.full(6, np.nan, np.float32)}, "rewards are not finite"),
        ({"rewards": np.full(6, -np.inf, np.float32)}, "rewards are not finite"),
    ],
)
def test_a_block_that_contradicts_itself_is_refused_by_its_source(
    changed: dict[str, Any], message: str
) -> None:
    block_of().check_valid()
    with pytest.raises(ValueError, match=rf"rollout:pong/0/env/3: {message}"):
        block_of(**changed).check_valid()
