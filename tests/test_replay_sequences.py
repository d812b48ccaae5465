"""Sequences around sampled rows, against a walk over the block's rows one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import unhurried

from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import BatchRing
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.sequences import SequenceBatch, SequenceBlocks, SequenceRule


def stream_block(number: int, steps: int, end: str = "", context: int = 0, tail: int = 1) -> Block:
    """A block of two commands a row whose every number follows from `number`."""
    rng = np.random.default_rng(number)
    rows = context + steps + tail
    terminated, truncated = np.zeros((2, rows), np.bool_)
    if end:
        {"terminated": terminated, "truncated": truncated}[end][-tail] = True
    first = np.zeros(rows, np.bool_)
    first[context + 1 :] = (terminated | truncated)[context:-1]
    return Block(
        f"rover:{number}",
        number,
        context,
        steps,
        (1 + rng.random((rows, 5))).astype(np.float16),
        rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rng.normal(size=rows).astype(np.float32),
        terminated,
        truncated,
        first,
        np.full(rows, 3, np.int32),
        message=f"m{number}#0",
    )


blocks = st.lists(
    st.tuples(
        st.integers(1, 7),
        st.sampled_from(["", "terminated", "truncated"]),
        st.integers(0, 2),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=4,
).map(lambda found: [stream_block(i, *each) for i, each in enumerate(found)])

rules = st.builds(
    SequenceRule, burn_in=st.integers(0, 4), unroll=st.integers(1, 4), n_step=st.integers(1, 3)
)


def gathered(rule: SequenceRule, held: list[Block], places: list[tuple[int, int]]) -> SequenceBatch:
    sequences, ring = SequenceBlocks(rule), BatchRing(1)
    for block_id, block in enumerate(held):
        block.check_valid()
        for value in vars(block).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        sequences.insert(block_id, block)
    ids, rows = np.array(places, np.int64).T
    sample = Sample(ids, rows, np.linspace(1, 0.1, len(places), dtype=np.float32))
    kept = ring.next((len(places), rule.rows, 5), np.dtype(np.float16))[0]
    kept[:] = np.nan  # what another batch left there must not show
    return sequences.gather(sample, ring)


@given(blocks, rules)
@unhurried
def test_every_sequence_is_that_of_a_walk_over_its_rows(
    held: list[Block], rule: SequenceRule
) -> None:
    places = [(i, row) for i, b in enumerate(held) for row in np.flatnonzero(b.starts).tolist()]
    batch, trained = gathered(rule, held, places), 0
    for i, (block_id, core_row) in enumerate(places):
        block = held[block_id]
        ends = block.terminated | block.truncated
        for t in range(rule.rows):
            row = block.context + core_row - rule.burn_in + t
            there = 0 <= row < len(ends)
            assert batch.valid[i, t] == there
            for found, of in (
                (batch.observations, block.observations),
                (batch.actions, block.actions),
                (batch.rewards, block.rewards),
                (batch.terminal, block.terminated),
                (batch.ends, ends),
            ):
                wanted = of[row] if there else np.zeros_like(of[0])
                np.testing.assert_array_equal(found[i, t], wanted)
            if rule.burn_in <= t < rule.burn_in + rule.unroll:
                step = there and row + 1 < len(ends) and not ends[row]
                assert batch.trained[i, t - rule.burn_in] == step
                trained += step
        assert batch.sources[i] == block.source
    assert batch.trained[:, 0].all()  # the sampled row
    assert batch.transitions == trained
    assert batch.finite_rows().all()


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_in_its_sequence(name: str, value: float) -> None:
    batch = gathered(SequenceRule(1, 2, 1), [stream_block(0, 6)], [(0, 0), (0, 2), (0, 4)])
    getattr(batch, name)[1, ...].flat[-1] = value if name != "weights" else 0
    if name == "weights":
        batch.weights[1] = value
    assert batch.finite_rows().tolist() == [True, False, True]


@pytest.mark.parametrize("number", [65504.0, -65504.0, 6e-8, -0.0])
def test_the_largest_and_the_least_numbers_of_float16_are_finite(number: float) -> None:
    batch = gathered(SequenceRule(0, 1, 1), [stream_block(0, 2)], [(0, 0)])
    batch.observations[:] = number
    assert batch.finite_rows().all()


def test_what_was_discarded_is_gone_and_the_rest_stays_in_whatever_order_it_came() -> None:
    sequences = SequenceBlocks(SequenceRule(0, 1, 1))
    for block_id in (5, 2, 9, 3):
        sequences.insert(block_id, stream_block(block_id, 3))
    sequences.discard(4)
    assert len(sequences) == 2
    ring = BatchRing(1)
    kept = Sample(np.array([9, 5]), np.array([0, 1]), np.ones(2, np.float32))
    assert sequences.gather(kept, ring).sources == ("rover:9", "rover:5")
    with pytest.raises(KeyError):
        sequences.gather(Sample(np.array([3]), np.array([0]), np.ones(1, np.float32)), ring)


def test_a_block_whose_last_step_has_no_end_is_refused() -> None:
    block = stream_block(0, 3, tail=1)
    cut = {n: v[:-1] for n, v in vars(block).items() if isinstance(v, np.ndarray)}
    short = Block(block.source, 0, 0, 3, **cut)
    with pytest.raises(ValueError, match="needs a row behind its core"):
        SequenceBlocks(SequenceRule(0, 1, 1)).insert(0, short)


def test_what_the_index_draws_can_be_gathered() -> None:
    held = [stream_block(i, 4, "terminated" if i % 2 else "") for i in range(3)]
    index = ReplayIndex(100, 8, 0.6, np.random.default_rng(0))
    sequences = SequenceBlocks(SequenceRule(2, 2, 1))
    for block_id, block in enumerate(held):
        index.insert(block_id, block.info())
        sequences.insert(block_id, block)
    drawn = index.sample(48, 0.5)
    batch = sequences.gather(drawn, BatchRing(1))
    assert batch.trained[:, 0].all()
    assert set(batch.sources) == {"rover:0", "rover:1", "rover:2"}
