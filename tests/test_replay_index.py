"""The replay index: what is drawn and how often, what is kept, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from naive_replay import unhurried

from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.index import MIN_PRIORITY, ReplayIndex, Sample

LENGTH = 4
EXPONENT = 0.6


def info_of(starts: list[bool], sequence: int = 0, schema: str = "uint8[84,84]") -> BlockInfo:
    versions = np.arange(len(starts), dtype=np.int32) + 10 * sequence
    return BlockInfo("env/0", sequence, schema, np.array(starts), versions, 100 + len(starts))


def index_of(
    blocks: int, capacity: int = 40, seed: int = 0, exponent: float = EXPONENT
) -> ReplayIndex:
    """An index of `blocks` whole blocks."""
    index = ReplayIndex(capacity, LENGTH, exponent, np.random.default_rng(seed))
    for i in range(blocks):
        index.insert(i, info_of([True] * LENGTH, i))
    return index


def places(blocks: int) -> Sample:
    """All transitions of so many whole blocks, in order."""
    at = np.arange(blocks * LENGTH)
    return Sample(at // LENGTH, at % LENGTH, np.ones(len(at), np.float32))


def leaf(sample: Sample) -> np.ndarray:
    return sample.block_ids * LENGTH + sample.rows


# Drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_draws_are_proportional_to_priorities(exponent: float) -> None:
    index = index_of(blocks=5, seed=1, exponent=exponent)
    td_errors = np.random.default_rng(2).normal(scale=3, size=20)
    index.update_priorities(places(5), td_errors)
    chances = (np.abs(td_errors) + MIN_PRIORITY) ** exponent
    chances /= chances.sum()
    draws = 6_000
    counts = np.zeros(20)
    for _ in range(draws):
        counts += np.bincount(leaf(index.sample(1, 0.4)), minlength=20)
    chi_square = (((counts - draws * chances) ** 2) / (draws * chances)).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand


def test_a_batch_is_stratified() -> None:
    index = index_of(blocks=5, seed=1)
    td_errors = np.random.default_rng(2).normal(scale=3, size=20)
    index.update_priorities(places(5), td_errors)
    chances = (np.abs(td_errors) + MIN_PRIORITY) ** EXPONENT
    chances /= chances.sum()
    for size in (7, 64, 500):
        counts = np.bincount(leaf(index.sample(size, 0.4)), minlength=20)
        # An interval of c strata holds its whole strata and a part of two more.
        assert (np.abs(counts - size * chances) < 2).all()


def test_two_draws_differ() -> None:
    index = index_of(blocks=10)
    assert not np.array_equal(leaf(index.sample(16, 0.4)), leaf(index.sample(16, 0.4)))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_those_of_the_paper(beta: float) -> None:
    index = index_of(blocks=5)
    td_errors = np.random.default_rng(3).normal(size=20)
    index.update_priorities(places(5), td_errors)
    priorities = (np.abs(td_errors) + MIN_PRIORITY) ** EXPONENT
    sample = index.sample(64, beta)
    drawn = (20 * priorities / priorities.sum())[leaf(sample)] ** -beta
    np.testing.assert_allclose(sample.weights, drawn / drawn.max(), rtol=1e-5)
    assert sample.weights.dtype == np.float32 and sample.weights.max() == 1


def test_a_new_transition_gets_the_greatest_priority_seen() -> None:
    index = index_of(blocks=1, capacity=8)
    index.update_priorities(places(1), np.array([0.5, 0.5, 50.0, 0.5]))
    index.update_priorities(places(1), np.array([0.5, 0.5, 0.5, 0.5]))
    index.insert(1, info_of([True] * LENGTH, 1))
    sample = index.sample(400, 1.0)
    old, new = sample.weights[sample.block_ids == 0], sample.weights[sample.block_ids == 1]
    ratio = (50.0 + MIN_PRIORITY) ** EXPONENT / (0.5 + MIN_PRIORITY) ** EXPONENT
    np.testing.assert_allclose(old[0] / new[0], ratio, rtol=1e-5)


def test_a_transition_without_error_is_not_lost_for_good() -> None:
    index = index_of(blocks=1)
    index.update_priorities(places(1), np.zeros(LENGTH))
    assert set(leaf(index.sample(LENGTH, 0.4)).tolist()) == {0, 1, 2, 3}


def test_an_empty_index_has_nothing_to_sample() -> None:
    with pytest.raises(ValueError, match="empty"):
        index_of(blocks=0).sample(1, 0.4)


# Keeping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "expected"), [(1, 2), (8, 2), (9, 3), (40, 10)])
def test_the_capacity_is_rounded_up_to_whole_blocks_and_is_never_one(
    capacity: int, expected: int
) -> None:
    index = index_of(0, capacity)
    evicted = [index.insert(i, info_of([True] * LENGTH, i)) for i in range(expected + 1)]
    assert evicted == [None] * expected + [0]
    assert index.fill == 1


def test_priorities_of_evicted_blocks_change_nothing() -> None:
    index, twin = index_of(blocks=2, capacity=8), index_of(blocks=2, capacity=8)
    stale = places(2)
    for each in (index, twin):
        assert each.insert(2, info_of([True] * LENGTH, 2)) == 0
    index.update_priorities(stale, np.append(np.full(LENGTH, 1e6), np.full(LENGTH, 2.0)))
    live = Sample(stale.block_ids[LENGTH:], stale.rows[LENGTH:], stale.weights[LENGTH:])
    twin.update_priorities(live, np.full(LENGTH, 2.0))
    assert index.state() == twin.state()  # the greatest priority is not the evicted one's
    one, other = index.sample(64, 0.4), twin.sample(64, 0.4)
    np.testing.assert_array_equal(leaf(one), leaf(other))
    np.testing.assert_array_equal(one.weights, other.weights)
    index.check_valid()


def test_priorities_of_evicted_blocks_alone_change_nothing() -> None:
    index = index_of(blocks=3, capacity=8)
    before = index.state()
    index.update_priorities(places(1), np.full(LENGTH, 1e6))
    assert index.state() == before
    index.check_valid()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_error_that_is_not_finite_changes_no_priority(bad: float) -> None:
    index, twin = index_of(blocks=2), index_of(blocks=2)
    with pytest.raises(ValueError, match="no priority was changed"):
        index.update_priorities(places(1), np.array([5.0, bad, 5.0, 5.0]))
    one, other = index.sample(32, 0.4), twin.sample(32, 0.4)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(leaf(one), leaf(other))
    assert index.state() == twin.state()


def test_a_block_of_another_task_is_refused_and_both_schemas_named() -> None:
    index = index_of(blocks=10)
    with pytest.raises(ValueError, match=r"float32\[4\].*uint8\[84,84\].*another task"):
        index.insert(10, info_of([True], 7, "float32[4]"))
    assert (index.transitions, index.inserted_transitions, index.fill) == (40, 40, 1.0)
    index.check_valid()


def test_a_block_longer_than_a_place_is_refused() -> None:
    index = index_of(blocks=10)
    with pytest.raises(ValueError, match="block 7 of env/0 has 5 core rows; this index takes 4"):
        index.insert(10, info_of([True] * 5, 7))
    assert (index.transitions, index.fill) == (40, 1.0)
    index.check_valid()


def test_a_restored_index_continues_the_same_draws() -> None:
    first = index_of(blocks=4, seed=5)
    first.update_priorities(places(2), np.full(8, 30.0))
    first.sample(16, 0.4)
    state = json.loads(json.dumps(first.state()))
    second = index_of(blocks=0, seed=99)
    second.restore(state)
    for i in range(4):
        second.insert(i, info_of([True] * LENGTH, i))
    first.update_priorities(places(4), np.ones(16))
    second.update_priorities(places(4), np.ones(16))
    for _ in range(3):
        np.testing.assert_array_equal(leaf(first.sample(16, 0.4)), leaf(second.sample(16, 0.4)))
    assert first.state() == second.state()


# Any order of operations ---------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """The index beside a model: a dict of blocks and their priorities in plain arrays."""

    @initialize(capacity=st.integers(1, 24), seed=st.integers(0, 2**32))
    def start(self, capacity: int, seed: int) -> None:
        self.index = ReplayIndex(capacity, LENGTH, EXPONENT, np.random.default_rng(seed))
        self.rng = np.random.default_rng(seed + 1)
        self.places = max(2, -(-capacity // LENGTH))
        self.priorities: dict[int, np.ndarray] = {}
        self.infos: dict[int, BlockInfo] = {}
        self.born: dict[int, int] = {}
        self.greatest, self.inserted, self.next_id = 1.0, 0, 0
        self.drawn: list[Sample] = []

    @rule(starts=st.lists(st.booleans(), min_size=1, max_size=LENGTH))
    def insert(self, starts: list[bool]) -> None:
        info = info_of(starts, self.next_id)
        evicted = self.index.insert(self.next_id, info)
        expected = min(self.priorities) if len(self.priorities) == self.places else None
        assert evicted == expected
        if evicted is not None:
            del self.priorities[evicted], self.infos[evicted]
        self.priorities[self.next_id] = np.array(starts) * self.greatest
        self.infos[self.next_id] = info
        self.born[self.next_id] = self.inserted
        self.inserted += sum(starts)
        self.next_id += 1

    @precondition(lambda self: self.total > 0)
    @rule(size=st.integers(1, 12), beta=st.sampled_from([0.0, 0.5, 1.0]))
    def sample(self, size: int, beta: float) -> None:
        sample = self.index.sample(size, beta)
        pairs = list(zip(sample.block_ids.tolist(), sample.rows.tolist(), strict=True))
        drawn = np.array([self.priorities[block][row] for block, row in pairs])
        assert (drawn > 0).all()
        np.testing.assert_allclose(sample.weights, (drawn.min() / drawn) ** beta, rtol=1e-4)
        ages = [self.inserted - self.born[block] for block, _ in pairs]
        assert self.index.ages(sample).tolist() == ages
        self.drawn.append(sample)

    @precondition(lambda self: self.drawn)
    @rule(scale=st.sampled_from([0.0, 0.1, 10.0]), newest=st.booleans())
    def update(self, scale: float, newest: bool) -> None:
        sample = self.drawn[-1] if newest else self.drawn[self.rng.integers(len(self.drawn))]
        td_errors = self.rng.normal(scale=scale, size=len(sample.rows)).astype(np.float32)
        self.index.update_priorities(sample, td_errors)
        for block, row, error in zip(sample.block_ids, sample.rows, td_errors, strict=True):
            if block in self.priorities:
                priority = (abs(float(error)) + MIN_PRIORITY) ** EXPONENT
                self.priorities[block][row] = priority
                self.greatest = max(self.greatest, priority)

    @precondition(lambda self: self.drawn)
    @rule()
    def refused_update(self) -> None:
        td_errors = np.ones(len(self.drawn[-1].rows))
        td_errors[-1] = np.nan
        with pytest.raises(ValueError):
            self.index.update_priorities(self.drawn[-1], td_errors)

    @precondition(lambda self: self.next_id)
    @rule()
    def refused_insert(self) -> None:
        with pytest.raises(ValueError):
            self.index.insert(self.next_id, info_of([True], self.next_id, "float32[4]"))

    @precondition(lambda self: self.total > 0)
    @rule()
    def restore(self) -> None:
        state: dict[str, Any] = json.loads(json.dumps(self.index.state()))
        before = leaf(self.index.sample(8, 0.4))
        self.index.restore(state)
        np.testing.assert_array_equal(leaf(self.index.sample(8, 0.4)), before)

    @invariant()
    def agrees(self) -> None:
        self.index.check_valid()
        kept = self.infos.values()
        assert self.index.transitions == sum(info.transitions for info in kept)
        assert self.index.nbytes == sum(info.nbytes for info in kept)
        assert self.index.inserted_transitions == self.inserted
        assert self.index.fill == len(self.infos) / self.places

    @property
    def total(self) -> float:
        return sum(float(each.sum()) for each in self.priorities.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(unhurried, max_examples=60, stateful_step_count=40)
