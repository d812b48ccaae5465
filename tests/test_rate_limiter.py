"""The ratio of samples to inserts, held from both sides under any schedule."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import unhurried

from rl_cluster.replay.rate_limiter import RateLimiter

ROUNDING = 1e-6


@dataclass
class System:
    """Collectors and a sampler that ask the limiter as the replay does."""

    collectors: int
    chunk: int
    batch: int
    samples_per_insert: float
    min_transitions: int
    busy: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        # What rl_cluster/cluster/replay_actor.py gives it.
        self.slack = (self.collectors + 1) * self.chunk * self.samples_per_insert + 4 * self.batch
        self.limiter = RateLimiter(self.samples_per_insert, self.min_transitions, self.slack)

    def turn(self, collector: int, transitions: int) -> bool:
        """A collector returns what it was sent for, or asks to go; whether anything happened."""
        if collector in self.busy:
            self.busy.remove(collector)
            self.limiter.insert(transitions)
            return True
        if self.limiter.may_insert((len(self.busy) + 1) * self.chunk):
            self.busy.add(collector)
            return True
        return False

    def draw(self) -> bool:
        """The sampler asks for a batch; whether it got one."""
        if not self.limiter.may_sample(self.batch):
            return False
        self.limiter.sample(self.batch)
        return True

    def follow(self, schedule: Iterable[tuple[int, float]]) -> None:
        """Give turns to a collector, or to the sampler (-1), and share of a chunk to bring."""
        for who, share in schedule:
            if who < 0:
                self.draw()
            else:
                self.turn(who % self.collectors, max(1, int(share * self.chunk)))

    def check(self) -> None:
        """The limiter's invariant."""
        balance = self.limiter.balance
        assert balance <= self.slack + ROUNDING
        if self.limiter.warm:
            assert balance >= -ROUNDING
            counted = self.limiter.inserts - self.min_transitions
            owed = counted * self.samples_per_insert - self.limiter.samples
            assert 0 - ROUNDING <= owed <= self.slack + ROUNDING
        else:
            assert self.limiter.samples == 0 and self.limiter.actual is None

    def change(self, samples_per_insert: float, batch: int) -> None:
        """Another ratio and batch, as a person asks for them in the middle of a run."""
        self.samples_per_insert, self.batch = samples_per_insert, batch
        self.slack = (self.collectors + 1) * self.chunk * samples_per_insert + 4 * batch
        self.limiter.change(samples_per_insert, self.slack, len(self.busy) * self.chunk)


systems = st.builds(
    System,
    collectors=st.integers(1, 4),
    chunk=st.integers(1, 64),
    batch=st.integers(1, 64),
    samples_per_insert=st.sampled_from([0.1, 0.25, 1.0, 3.7, 8.0, 32.0]),
    min_transitions=st.sampled_from([1, 30, 300]),
)
who = st.integers(-1, 3)  # -1 is the sampler
part = st.floats(0, 1, exclude_min=True)  # of a chunk: rows that end an episode start nothing
schedules = st.lists(st.tuples(who, part), min_size=40, max_size=200)


@given(systems, schedules)
@unhurried
def test_whatever_the_schedule_samples_stay_within_slack_of_inserts(
    system: System, schedule: list[tuple[int, float]]
) -> None:
    for turn in schedule:
        system.follow([turn])
        system.check()


@given(systems, schedules)
@unhurried
def test_while_both_sides_keep_asking_something_always_happens_and_both_get_on(
    system: System, schedule: list[tuple[int, float]]
) -> None:
    system.follow(schedule)
    limiter = system.limiter
    for _ in range(3):
        inserts, samples = limiter.inserts, limiter.samples
        counted_rounds = 0
        while limiter.inserts == inserts or limiter.samples == samples:
            happened = [system.turn(i, system.chunk) for i in range(system.collectors)]
            assert any([*happened, system.draw()]), "neither side may go on"
            system.check()
            counted_rounds += 1
            assert counted_rounds < 10_000, "one side starves"


@pytest.mark.parametrize("batches_per_turn", [1, 1_000])
@pytest.mark.parametrize("samples_per_insert", [0.25, 8.0])
def test_a_slow_and_a_fast_sampler_both_settle_within_five_percent_of_the_ratio(
    samples_per_insert: float, batches_per_turn: int
) -> None:
    system = System(2, 64, 32, samples_per_insert, 2_000)
    limiter = system.limiter
    while limiter.samples < 20 * system.slack:
        for collector in range(2):
            system.turn(collector, 64)
        for _ in range(batches_per_turn):
            system.draw()
    assert limiter.actual == pytest.approx(samples_per_insert, rel=0.05)


def test_nothing_is_sampled_before_the_warm_up_is_over() -> None:
    limiter = RateLimiter(samples_per_insert=8, min_transitions=100, slack_samples=400)
    limiter.insert(99)
    assert not limiter.warm and not limiter.may_sample(1)
    limiter.insert(1)
    assert limiter.warm and not limiter.may_sample(1)  # the warm-up owes no samples
    limiter.insert(1)
    assert limiter.may_sample(8) and not limiter.may_sample(9)


def test_collection_waits_for_a_learner_that_lags() -> None:
    limiter = RateLimiter(samples_per_insert=8, min_transitions=100, slack_samples=400)
    limiter.insert(100)
    assert limiter.may_insert(50) and not limiter.may_insert(51)
    limiter.insert(50)
    assert not limiter.may_insert(1)
    limiter.sample(32)
    assert limiter.may_insert(4) and not limiter.may_insert(5)
    assert limiter.actual == 32 / 50


class Ledger:
    """The balance written out: every insert and sample is entered at the ratio of its day."""

    def __init__(self, system: System) -> None:
        self.system, self.owed = system, 0.0
        self.seen = 0, 0

    def enter(self) -> None:
        """What was inserted and sampled since the last entry."""
        limiter = self.system.limiter
        inserts = max(0, limiter.inserts - self.system.min_transitions)
        new, drawn = inserts - self.seen[0], limiter.samples - self.seen[1]
        self.owed += new * self.system.samples_per_insert - drawn
        self.seen = inserts, limiter.samples

    def forgive(self) -> None:
        """What the new slack has no room for."""
        system = self.system
        coming = len(system.busy) * system.chunk * system.samples_per_insert
        self.owed = min(self.owed, system.slack - coming)


ratios = st.sampled_from([0.1, 0.25, 1.0, 3.7, 8.0, 32.0])
changes = st.builds(lambda ratio, batch: (ratio, batch), ratios, st.integers(1, 64))
turns = st.tuples(who, part)


@given(systems, st.lists(st.one_of(turns, turns, turns, st.tuples(changes)), min_size=20))
@unhurried
def test_a_changed_ratio_holds_from_then_on_and_charges_neither_side_for_the_past(
    system: System, schedule: list[tuple[Any, ...]]
) -> None:
    ledger = Ledger(system)
    for event in schedule:
        if len(event) == 1:
            system.change(*event[0])
            ledger.forgive()
        else:
            system.follow([event])
        ledger.enter()
        limiter = system.limiter
        assert limiter.balance <= system.slack + ROUNDING
        if limiter.warm:
            assert -ROUNDING <= limiter.balance == pytest.approx(ledger.owed, abs=1e-6)
        else:
            assert limiter.samples == 0


@given(systems, schedules, changes)
@unhurried
def test_after_a_change_both_sides_get_on(
    system: System, schedule: list[tuple[int, float]], change: tuple[float, int]
) -> None:
    system.follow(schedule)
    system.change(*change)
    limiter = system.limiter
    inserts, samples, rounds = limiter.inserts, limiter.samples, 0
    while limiter.inserts == inserts or limiter.samples == samples:
        happened = [system.turn(i, system.chunk) for i in range(system.collectors)]
        assert any([*happened, system.draw()]), "neither side may go on"
        rounds += 1
        assert rounds < 10_000, "one side starves"


def test_a_tenfold_ratio_owes_nothing_for_a_million_earlier_inserts() -> None:
    limiter = RateLimiter(samples_per_insert=1, min_transitions=100, slack_samples=400)
    limiter.insert(1_000_100)
    limiter.sample(999_800)
    limiter.change(10, 4_000, inserts_under_way=0)
    assert limiter.balance == 200
    assert limiter.actual is None
    limiter.insert(10)
    limiter.sample(100)
    assert limiter.balance == 200
    assert limiter.actual == 10
    limiter.change(0.1, 50, inserts_under_way=100)
    assert limiter.balance == 40  # and the 10 of those that come


def test_a_change_before_the_first_sample_moves_nothing_but_the_ratio() -> None:
    limiter = RateLimiter(samples_per_insert=8, min_transitions=100, slack_samples=400)
    limiter.insert(50)
    limiter.change(2, 100, inserts_under_way=10)
    assert not limiter.warm and limiter.actual is None
    limiter.insert(60)
    assert limiter.balance == 20


@given(systems, schedules, changes, schedules)
@unhurried
def test_a_restored_limiter_decides_as_the_one_it_was_saved_from(
    system: System,
    before: list[tuple[int, float]],
    change: tuple[float, int],
    after: list[tuple[int, float]],
) -> None:
    system.follow(before)
    system.change(*change)
    state = json.loads(json.dumps(system.limiter.state()))
    other = RateLimiter(system.samples_per_insert, system.min_transitions, system.slack)
    other.restore(state)
    for collector, share in after:
        wanted = system.limiter
        assert (other.warm, other.balance, other.actual) == (
            wanted.warm, wanted.balance, wanted.actual
        )  # fmt: skip
        transitions = max(1, int(share * system.chunk))
        for each in (wanted, other):
            if collector < 0 and each.may_sample(transitions):
                each.sample(transitions)
            elif each.may_insert(transitions):
                each.insert(transitions)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=200))
def test_experience_from_outside_never_waits_and_what_is_owed_stays_bounded(
    turns: list[tuple[bool, int]],
) -> None:
    limiter = RateLimiter(2.0, 100, 64.0, holds_inserts=False)
    for inserts, transitions in turns:
        if inserts:
            assert limiter.may_insert(transitions)
            limiter.insert(transitions)
        elif limiter.may_sample(transitions):
            limiter.sample(transitions)
        assert limiter.balance <= 64.0 + ROUNDING
        assert not limiter.warm or limiter.balance >= -ROUNDING
    assert limiter.samples <= 2.0 * max(0, limiter.inserts - 100) + ROUNDING
