"""The gather, over many environments and evictions, and against EnvPool's own frame stacks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import weakref

import numpy as np
import pytest
from envpool_stacks import play, without_lost_lives
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import (
    Cut,
    Row,
    assert_same,
    build,
    cuts,
    rules,
    streams,
    transition_at,
    unhurried,
)

from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import Batch, BatchRing, MappedBlocks
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.transitions import TransitionRule


def sample_of(places: list[tuple[int, int]]) -> Sample:
    """A sample of these (block, row), each with a weight of its own."""
    block_ids, rows = np.array(places, np.int64).T
    return Sample(block_ids, rows, np.linspace(1, 0.1, len(places), dtype=np.float32))


def read_only(block: Block) -> Block:
    """As Ray gives it out of shared memory."""
    for value in vars(block).values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return block


class SmallReplay:
    """An index and its blocks, as the replay and the learner hold them together."""

    def __init__(self, capacity: int, block_length: int, rule: TransitionRule) -> None:
        self.index = ReplayIndex(capacity, block_length, 0.6, np.random.default_rng(7))
        self.blocks: dict[int, Block] = {}
        self.mapped = MappedBlocks(rule, block_length)
        self._ring, self._next_id = BatchRing(1), 0

    def insert(self, block: Block) -> int | None:
        evicted = self.index.insert(self._next_id, block.info())
        self.blocks[self._next_id] = read_only(block)
        self.mapped.insert(self._next_id, block)
        self._next_id += 1
        if evicted is not None:
            del self.blocks[evicted]
            self.mapped.discard(evicted + 1)
        return evicted

    def gather(self, sample: Sample) -> Batch:
        return self.mapped.gather(sample, self._ring)

    @property
    def places(self) -> list[tuple[int, int]]:
        """(block, row) of every transition that is kept."""
        return [
            (i, row)
            for i, block in self.blocks.items()
            for row in np.flatnonzero(block.starts).tolist()
        ]


@st.composite
def collected(draw: st.DrawFn) -> tuple[TransitionRule, list[list[Row]], list[Cut], list[Block]]:
    """Blocks of three environments, in an order in which they could arrive."""
    rule = draw(rules)
    rows = [draw(streams(env_id)) for env_id in range(3)]
    length = draw(st.integers(1, 9))
    chosen = [Cut(draw(st.integers(1, length)), length) for _ in rows]
    waiting = [
        build(stream, cut, rule, str(i))
        for i, (stream, cut) in enumerate(zip(rows, chosen, strict=True))
    ]
    order = [i for i, blocks in enumerate(waiting) for _ in blocks]
    arrival = draw(st.permutations(order))
    return rule, rows, chosen, [waiting[i].pop(0) for i in arrival]


@given(collected(), st.integers(1, 24))
@settings(unhurried, max_examples=60)
def test_all_that_is_kept_is_gathered_as_the_naive_replay_has_it_whatever_was_evicted(
    data: tuple[TransitionRule, list[list[Row]], list[Cut], list[Block]], capacity: int
) -> None:
    rule, rows, chosen, blocks = data
    replay = SmallReplay(capacity, chosen[0].length, rule)
    kept_at_most = max(2, math.ceil(capacity / chosen[0].length))
    for count, block in enumerate(blocks, start=1):
        assert replay.insert(block) == (count - kept_at_most - 1 if count > kept_at_most else None)
        if count not in (len(blocks) // 2, len(blocks)) or not (places := replay.places):
            continue
        replay.index.check_valid()
        # Priorities are equal, so strata of half a transition find every one.
        drawn = replay.index.sample(2 * len(places), 0.5)
        batch = replay.gather(drawn)
        batch.check_valid()
        met = {}
        for i, place in enumerate(zip(drawn.block_ids.tolist(), drawn.rows.tolist(), strict=True)):
            met.setdefault(place, i)
        assert sorted(met) == sorted(places)
        for (block_id, row), i in met.items():
            home, source = replay.blocks[block_id], int(batch.sources[i])
            assert home.source == batch.sources[i]
            at = chosen[source].start(home.sequence) + row
            assert_same(batch, i, transition_at(rows[source], at, rule))


@given(streams(), cuts, rules)
@unhurried
def test_every_start_row_is_gathered_exactly_once(
    rows: list[Row], cut: Cut, rule: TransitionRule
) -> None:
    replay = SmallReplay(1_000, cut.length, rule)
    for block in build(rows, cut, rule):
        replay.insert(block)
    sealed = cut.sealed_rows(len(rows), rule.n_step)
    starts = [at for at in range(sealed) if not rows[at].ends]
    assert len(replay.places) == len(starts) == replay.index.transitions
    if starts:
        batch = replay.gather(sample_of(replay.places))
        assert batch.s_tm1[:, -1, 1].tolist() == starts  # the frame's second number is its row
        for i, at in enumerate(starts):
            assert_same(batch, i, transition_at(rows, at, rule))


@pytest.mark.parametrize(
    ("game", "protocol", "max_episode_steps", "ends_by"),
    [
        ("Breakout", "machado", 400, "terminated"),
        ("Breakout", "nature", 90, "terminated"),
        ("Pong", "machado", 50, "truncated"),
        ("Pong", "nature", 37, "truncated"),
    ],
)
def test_gathered_stacks_are_envpools_own(
    game: str, protocol: str, max_episode_steps: int, ends_by: str
) -> None:
    rows, stacks = play(game, protocol, max_episode_steps)
    if protocol == "nature":
        stacks = without_lost_lives(stacks, rows)
    rule, cut = TransitionRule(4, 3, 0.99, 1.0), Cut(11, 32)
    compared, ends, starts = 0, 0, 0
    for env_id, stream in enumerate(rows):
        replay = SmallReplay(70, cut.length, rule)  # three blocks: all older ones are evicted
        for block_id, block in enumerate(build(stream, cut, rule)):
            replay.insert(block)
            newest = [place for place in replay.places if place[0] == block_id]
            batch = replay.gather(sample_of(newest))
            for i, (_, row) in enumerate(newest):
                at = cut.start(block.sequence) + row
                last = next(k for k in range(at, at + 4) if stream[k].ends or k == at + 3)
                np.testing.assert_array_equal(batch.s_tm1[i], stacks[at, env_id])
                np.testing.assert_array_equal(batch.s_t[i], stacks[last, env_id])
                assert_same(batch, i, transition_at(stream, at, rule))
                compared += 1
                ends += getattr(stream[last], ends_by)
                starts += stream[at].first
    assert compared > 400 and ends > 1 and starts > 2


def some_batch() -> tuple[Batch, SmallReplay]:
    """A batch of a small replay of 30 rows."""
    rule = TransitionRule(2, 1, 0.9, None)
    rows = [
        Row(np.full((3, 3), k, np.uint8), k, np.float32(k), False, False, k == 0, k)
        for k in range(30)
    ]
    replay = SmallReplay(12, 6, rule)
    for block in build(rows, Cut(6, 6), rule)[:2]:
        replay.insert(block)
    return replay.gather(sample_of(replay.places)), replay


def test_a_batch_says_where_it_comes_from_and_with_what_weight() -> None:
    batch, replay = some_batch()
    assert batch.sources == ("env",) * 12
    assert batch.sample.block_ids.tolist() == [0] * 6 + [1] * 6
    assert batch.weights is batch.sample.weights
    assert batch.a_tm1.dtype == np.int64 and batch.a_tm1.tolist() == list(range(12))


def test_a_batch_has_memory_of_its_own_and_outlives_its_blocks() -> None:
    batch, replay = some_batch()
    for block in replay.blocks.values():
        for name in ("s_tm1", "s_t"):
            assert not np.shares_memory(getattr(batch, name), block.observations)
    assert batch.s_tm1.flags.writeable


def test_a_place_in_a_block_that_has_gone_is_an_error() -> None:
    _, replay = some_batch()
    with pytest.raises(KeyError):
        replay.gather(sample_of([(0, 0), (99, 0)]))


def test_a_block_that_was_let_go_is_nowhere_held() -> None:
    _, replay = some_batch()
    kept = weakref.ref(replay.blocks.pop(0).observations)
    assert kept() is not None
    replay.mapped.discard(1)
    assert kept() is None
    assert len(replay.mapped) == 1


def test_a_block_longer_than_was_said_is_refused() -> None:
    _, replay = some_batch()
    with pytest.raises(ValueError, match="shape"):
        MappedBlocks(TransitionRule(2, 1, 0.9, None), 5).insert(0, replay.blocks[0])


def test_many_blocks_come_and_go_and_each_keeps_its_own_numbers() -> None:
    """More blocks than there were places for at first."""
    _, replay = some_batch()
    block, mapped = replay.blocks[0], MappedBlocks(TransitionRule(2, 1, 0.9, None), 6)
    for block_id in range(300):
        mapped.insert(block_id, dataclasses.replace(block, actions=block.actions + block_id))
        mapped.discard(block_id - 149)
    assert len(mapped) == 150
    places = [(block_id, row) for block_id in range(150, 300) for row in range(6)]
    batch = mapped.gather(sample_of(places), BatchRing(1))
    assert batch.a_tm1.tolist() == [block_id + row for block_id, row in places]


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=4))
@unhurried
def test_blocks_may_arrive_in_any_order_and_the_oldest_ids_go(
    order: list[int], discards: list[int]
) -> None:
    """As when a journal brings older ones back beside new ones."""
    _, replay = some_batch()
    block, mapped = replay.blocks[0], MappedBlocks(TransitionRule(2, 1, 0.9, None), 6)
    held: set[int] = set()
    for k, block_id in enumerate(order):
        mapped.insert(block_id, dataclasses.replace(block, actions=block.actions + block_id))
        held.add(block_id)
        if k % 3 == 2 and discards:
            below = discards.pop()
            mapped.discard(below)
            held = {i for i in held if i >= below}
        assert len(mapped) == len(held)
        places = [(i, row) for i in sorted(held) for row in range(6)]
        if places:
            batch = mapped.gather(sample_of(places), BatchRing(1))
            assert batch.a_tm1.tolist() == [i + row for i, row in places]
        for gone in set(order[: k + 1]) - held:
            with pytest.raises(KeyError):
                mapped.gather(sample_of([(gone, 0)]), BatchRing(1))


def test_a_ring_s_batches_stay_whole_until_their_turn_comes_again() -> None:
    _, replay = some_batch()
    ring, picked = BatchRing(3), sample_of(replay.places)
    batches = [replay.mapped.gather(picked, ring) for _ in range(4)]
    for earlier, later in itertools.pairwise(batches):
        assert not np.shares_memory(earlier.s_tm1, later.s_tm1)
        assert not np.shares_memory(earlier.s_t, later.s_t)
    assert not np.shares_memory(batches[0].s_tm1, batches[0].s_t)
    assert batches[3].s_tm1 is batches[0].s_tm1
    assert batches[3].s_t is batches[0].s_t


def test_a_ring_takes_new_memory_for_batches_of_another_size() -> None:
    _, replay = some_batch()
    ring = BatchRing(1)
    large = replay.mapped.gather(sample_of(replay.places), ring)
    small = replay.mapped.gather(sample_of(replay.places[:5]), ring)
    assert (len(large.s_t), len(small.s_t)) == (12, 5)


def test_a_ring_s_memory_comes_from_where_it_is_told() -> None:
    given: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        given.append(np.zeros(shape, dtype))
        return given[-1]

    _, replay = some_batch()
    batch = replay.mapped.gather(sample_of(replay.places), BatchRing(2, allocate))
    assert [id(array) for array in given] == [id(batch.s_tm1), id(batch.s_t)]


@pytest.mark.parametrize("field", ["r_t", "discount_t", "weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_knows_whether_its_numbers_are_finite(field: str, value: float) -> None:
    batch, _ = some_batch()
    assert batch.finite_rows().all()
    getattr(batch, field)[3] = value
    assert not batch.finite_rows().all()


def test_a_batch_whose_arrays_disagree_is_refused() -> None:
    batch, _ = some_batch()
    batch.check_valid()
    with pytest.raises(ValueError, match=r"s_tm1 .* and s_t .* differ"):
        dataclasses.replace(batch, s_t=batch.s_t[:-1]).check_valid()
    with pytest.raises(ValueError, match="r_t is float64"):
        dataclasses.replace(batch, r_t=batch.r_t.astype(np.float64)).check_valid()
    with pytest.raises(ValueError, match="weights is float32"):
        dataclasses.replace(batch, weights=batch.weights[:-1]).check_valid()
