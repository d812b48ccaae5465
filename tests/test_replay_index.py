"""The replay index: what is drawn and how often, what is kept, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from naive_replay import unhurried

from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.index import MIN_PRIORITY, ReplayIndex, Sample

LENGTH = 4
EXPONENT = 0.6


def info_of(
    starts: list[bool], sequence: int = 0, schema: str = "uint8[84,84]", message: str = ""
) -> BlockInfo:
    versions = np.arange(len(starts), dtype=np.int32) + 10 * sequence
    nbytes = 100 + len(starts)
    return BlockInfo("env/0", sequence, schema, np.array(starts), versions, nbytes, message)


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


# Restoring -----------------------------------------------------------------------------------


def restored(
    index: ReplayIndex, infos: dict[int, BlockInfo], capacity: int, seed: int = 77
) -> ReplayIndex:
    """An index with the same state, whose blocks come back newest first."""
    ids, values = index.priorities()
    saved = dict(zip(ids.tolist(), values, strict=True))
    other = ReplayIndex(capacity, LENGTH, EXPONENT, np.random.default_rng(seed))
    other.restore(json.loads(json.dumps(index.state())))
    for block_id in sorted(saved, reverse=True):
        info = infos[block_id]
        assert other.prepend(block_id, info, saved[block_id][: len(info.starts)])
    return other


@given(
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.lists(st.lists(st.booleans(), min_size=1, max_size=LENGTH), min_size=1, max_size=30),
    st.integers(0, 1_000),
)
@settings(unhurried, max_examples=80)
def test_a_restored_index_draws_what_the_saved_one_would_have_drawn(
    capacity: int, seed: int, blocks: list[list[bool]], first_id: int
) -> None:
    rng = np.random.default_rng(seed)
    index = ReplayIndex(capacity, LENGTH, EXPONENT, np.random.default_rng(seed + 1))
    infos = {first_id + i: info_of(starts, i) for i, starts in enumerate(blocks)}
    for block_id, info in infos.items():
        index.insert(block_id, info)
        if index.transitions:
            sample = index.sample(9, 0.4)
            index.update_priorities(sample, rng.normal(scale=3, size=9).astype(np.float32))
    twin = restored(index, infos, capacity)
    twin.check_valid()
    assert (twin.transitions, twin.nbytes, twin.fill) == (
        index.transitions,
        index.nbytes,
        index.fill,
    )
    assert twin.inserted_transitions == 0
    for each, other in zip(index.priorities(), twin.priorities(), strict=True):
        np.testing.assert_array_equal(each, other)
    for more in range(2 * index.places):
        if index.transitions:
            one, same = index.sample(16, 0.5), twin.sample(16, 0.5)
            for name in ("block_ids", "rows", "weights"):
                np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
            np.testing.assert_array_equal(index.ages(one), twin.ages(same))
            errors = rng.normal(size=16).astype(np.float32)
            index.update_priorities(one, errors)
            twin.update_priorities(same, errors)
        block_id = first_id + len(blocks) + more
        info = info_of([True] * LENGTH)
        assert index.insert(block_id, info) == twin.insert(block_id, info)
    assert index.state() == twin.state()


def test_blocks_without_saved_priorities_get_the_greatest_seen() -> None:
    index = index_of(0)
    index.restore(index.state() | {"max_priority": 7.0})
    index.prepend(5, info_of([True, False, True]), None)
    assert index.priorities()[1].tolist() == [[7.0, 0.0, 7.0, 0.0]]


def test_restoring_goes_on_beside_new_blocks_and_pushes_none_of_them_out() -> None:
    index = index_of(0, capacity=20)  # five places
    assert index.insert(100, info_of([True] * LENGTH)) is None
    assert index.prepend(99, info_of([True] * LENGTH), None)
    assert index.insert(101, info_of([True] * LENGTH)) is None
    assert index.prepend(97, info_of([True] * LENGTH), None)  # 98 was damaged
    assert not index.prepend(96, info_of([True] * LENGTH), None)
    assert index.fill == 0.8
    assert index.insert(102, info_of([True] * LENGTH)) == 97
    assert index.insert(103, info_of([True] * LENGTH)) is None  # 98 would have gone
    assert index.priorities()[0].tolist() == [99, 100, 101, 102, 103]
    assert index.inserted_transitions == 16
    index.check_valid()


def test_a_jump_of_ids_lets_all_go_that_are_too_far_behind() -> None:
    index = index_of(blocks=5, capacity=20)
    assert index.insert(7, info_of([True] * LENGTH)) == 2
    assert index.priorities()[0].tolist() == [3, 4, 7]
    assert index.insert(1_000, info_of([True])) == 7
    index.check_valid()


def test_ages_of_restored_blocks_count_what_came_after_them() -> None:
    index = index_of(0, capacity=20)
    for block_id in (9, 8):
        index.prepend(block_id, info_of([True] * LENGTH), None)
    index.insert(10, info_of([True] * LENGTH))
    blocks = Sample(np.array([8, 9, 10]), np.zeros(3, np.int64), np.ones(3, np.float32))
    assert index.ages(blocks).tolist() == [12, 8, 4]


@pytest.mark.parametrize("block_id", [5, 6])
def test_what_is_prepended_must_be_older(block_id: int) -> None:
    index = index_of(0)
    index.insert(5, info_of([True]))
    with pytest.raises(ValueError, match=f"{block_id} is not below 5"):
        index.prepend(block_id, info_of([True]), None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_saved_priority_that_is_none_changes_nothing(bad: float) -> None:
    index = index_of(0)
    index.insert(5, info_of([True]))
    with pytest.raises(ValueError, match="finite and not negative"):
        index.prepend(4, info_of([True, True]), np.array([1.0, bad], np.float32))
    assert (index.transitions, index.priorities()[0].tolist()) == (1, [5])
    index.check_valid()


def test_ids_that_do_not_grow_are_refused() -> None:
    index = index_of(blocks=3)
    with pytest.raises(ValueError, match="block id 2 is not above 2"):
        index.insert(2, info_of([True]))
    index.check_valid()


# Messages ------------------------------------------------------------------------------------


def test_a_message_is_held_while_its_block_lives_and_may_come_again_then() -> None:
    index = index_of(0, capacity=2 * LENGTH)  # two places
    for i, message in enumerate(("a#0", "", "a#1", "")):
        index.insert(i, info_of([True], i, message=message))
        assert index.holds("a#0") == (i < 2)
    assert index.holds("a#1") and not index.holds("")
    index.insert(4, info_of([True], 4, message="a#0"))
    assert index.holds("a#0") and not index.holds("a#1")
    index.check_valid()


def test_a_block_that_comes_twice_is_refused_and_changes_nothing() -> None:
    index = index_of(0)
    index.insert(5, info_of([True, True], 5, message="a#0"))
    for put in (index.insert, lambda at, info: index.prepend(at - 2, info, None)):
        with pytest.raises(ValueError, match="block 9 of env/0 came twice: message a#0 is live"):
            put(6, info_of([True], 9, message="a#0"))
    assert (index.transitions, index.priorities()[0].tolist()) == (2, [5])
    index.check_valid()
    assert index.prepend(4, info_of([True], 9, message="a#1"), None) and index.holds("a#1")


def test_a_block_that_found_no_place_is_not_held() -> None:
    index = index_of(0, capacity=2 * LENGTH)
    index.insert(5, info_of([True]))
    assert not index.prepend(3, info_of([True], message="a#0"), None)
    assert not index.holds("a#0")


@pytest.mark.parametrize("forgets", [True, False])
def test_messages_that_are_not_those_of_the_blocks_are_found(forgets: bool) -> None:
    index = index_of(0)
    index.insert(0, info_of([True], message="a#0"))
    index.check_valid()
    if forgets:
        index._messages.clear()
    else:
        index._messages.add("b#0")
    with pytest.raises(ValueError, match="messages"):
        index.check_valid()


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

    @rule(
        starts=st.lists(st.booleans(), min_size=1, max_size=LENGTH),
        message=st.sampled_from(["", "a#0", "a#1", "b#0"]),
    )
    def insert(self, starts: list[bool], message: str) -> None:
        info = info_of(starts, self.next_id, message=message)
        if message and message in self.messages:
            with pytest.raises(ValueError, match="came twice"):
                self.index.insert(self.next_id, info)
            return
        evicted = self.index.insert(self.next_id, info)
        expected = min(self.priorities) if len(self.priorities) == self.places else None
        assert evicted == expected
        if evicted is not None:
            del self.priorities[evicted], self.infos[evicted]
        self.priorities[self.next_id] = np.array(starts) * np.float32(self.greatest)
        self.infos[self.next_id] = info
        self.born[self.next_id] = self.inserted
        self.inserted += sum(starts)
        self.next_id += 1

    @precondition(lambda self: self.priorities)
    @rule()
    def come_back(self) -> None:
        """As a resume restores it: all blocks again, with their priorities and ages."""
        ages = {block: self.inserted - born for block, born in self.born.items()}
        self.index = restored(self.index, self.infos, self.places * LENGTH)
        self.inserted = 0
        self.born = {block: -age for block, age in ages.items()}

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
        for message in ("", "a#0", "a#1", "b#0"):
            assert self.index.holds(message) == (message in self.messages)

    @property
    def messages(self) -> set[str]:
        return {info.message for info in self.infos.values()} - {""}

    @property
    def total(self) -> float:
        return sum(float(each.sum()) for each in self.priorities.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(unhurried, max_examples=60, stateful_step_count=40)
