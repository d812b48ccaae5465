"""The ratio of samples to inserts, held from both sides under any schedule."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    for collector, share in schedule:
        if collector < 0:
            system.draw()
        else:
            system.turn(collector % system.collectors, max(1, int(share * system.chunk)))
        system.check()


@given(systems, schedules)
@unhurried
def test_while_both_sides_keep_asking_something_always_happens_and_both_get_on(
    system: System, schedule: list[tuple[int, float]]
) -> None:
    for collector, share in schedule:
        if collector < 0:
            system.draw()
        else:
            system.turn(collector % system.collectors, max(1, int(share * system.chunk)))
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
