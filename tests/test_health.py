"""Whether a worker is well: told from what it says, on a watch that stands still while we do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rl_cluster.supervision.health import (
    Deadlines,
    Health,
    Observation,
    Phase,
    Watch,
    failed_because,
    in_doubt,
    stalled_because,
)

LIMITS = Deadlines(starting_s=100.0, working_s=10.0, saving_s=40.0)
BUSY: tuple[Phase, ...] = ("starting", "working", "saving")
IDLE: tuple[Phase, ...] = ("waiting", "ended")
PHASES: tuple[Phase, ...] = BUSY + IDLE

phases = st.sampled_from(PHASES)
seconds = st.floats(0, 1e6)


def says(phase: Phase = "working", progress: int = 0, failure: str | None = None) -> Health:
    return Health(1, phase, progress, 10**8, 4711, 99, "boot", "node", failure)


def seen(health: Health | None, answered_s: float = 0.0, progressed_s: float = 0.0) -> Observation:
    return Observation(health, answered_s, progressed_s)


def silence_allowed_s(phase: Phase) -> float:
    """Seconds without any answer; one that waits answers as one at work does."""
    return {"starting": 100.0, "working": 10.0, "saving": 40.0}.get(phase, 10.0)


@given(phases, seconds, seconds)
def test_silence_is_told_to_the_second(phase: Phase, start_s: float, silent_s: float) -> None:
    assume(abs(silent_s - silence_allowed_s(phase)) > 1e-3)
    now_s = start_s + silent_s
    cause = failed_because(seen(says(phase), start_s, start_s), now_s, LIMITS)
    assert (cause is not None) == (silent_s > silence_allowed_s(phase))
    if cause is not None:
        assert f"while {phase}" in cause and "hung" in cause
        assert f"no answer for {now_s - start_s:.0f} s" in cause


@given(st.sampled_from(BUSY), seconds)
def test_alive_without_progress_is_failed(phase: Phase, stuck_s: float) -> None:
    assume(abs(stuck_s - silence_allowed_s(phase)) > 1e-3)
    cause = failed_because(seen(says(phase), stuck_s, 0.0), stuck_s, LIMITS)
    assert (cause is not None) == (stuck_s > silence_allowed_s(phase))
    if cause is not None:
        assert "alive without progress" in cause and f"while {phase}" in cause


@given(st.sampled_from(IDLE), seconds)
def test_who_has_nothing_to_do_need_only_answer(phase: Phase, stuck_s: float) -> None:
    assert failed_because(seen(says(phase), stuck_s, 0.0), stuck_s, LIMITS) is None


@given(seconds)
def test_who_never_answered_is_given_the_time_of_a_start(age_s: float) -> None:
    assume(abs(age_s - 100.0) > 1e-3)
    cause = failed_because(seen(None), age_s, LIMITS)
    assert (cause is not None) == (age_s > 100.0)
    if cause is not None:
        assert "while starting (limit 100 s)" in cause


@given(phases, seconds)
def test_who_says_that_it_failed_has_failed_at_once(phase: Phase, age_s: float) -> None:
    observation = seen(says(phase, failure="ValueError: no such game"), age_s, age_s)
    assert failed_because(observation, age_s, LIMITS) == "ValueError: no such game"


def test_the_cause_names_what_was_allowed() -> None:
    assert failed_because(seen(says("saving"), 0.0, 0.0), 41.0, LIMITS) == (
        "no answer for 41 s while saving (limit 40 s): hung"
    )
    assert failed_because(seen(says("working"), 12.0, 0.0), 12.0, LIMITS) == (
        "alive without progress for 12 s while working (limit 10 s)"
    )


@given(phases, st.floats(0, 1e3), st.floats(0, 1e3))
def test_who_stood_in_line_for_a_processor_is_not_accused_for_it_but_not_for_ever(
    phase: Phase, silent_s: float, starved_s: float
) -> None:
    limit_s = silence_allowed_s(phase)
    worker = seen(says(phase))
    cause = failed_because(worker, silent_s, LIMITS, starved_s)
    if silent_s - starved_s <= limit_s and silent_s <= 6 * limit_s:
        assert cause is None
    if silent_s - starved_s > limit_s or silent_s > 6 * limit_s:
        assert cause is not None


@given(phases, st.floats(0, 1e3), st.floats(0, 1e3))
def test_nobody_fails_who_was_not_in_doubt_before(
    phase: Phase, silent_s: float, stuck_s: float
) -> None:
    now_s = max(silent_s, stuck_s)
    worker = seen(says(phase), now_s - silent_s, now_s - stuck_s)
    if failed_because(worker, now_s, LIMITS) is not None:
        assert in_doubt(worker, now_s, LIMITS)
    if max(silent_s, stuck_s) < silence_allowed_s(phase) / 2:
        assert not in_doubt(worker, now_s, LIMITS)


answers = st.lists(st.tuples(st.floats(0.01, 9.0), phases, st.integers(0, 3)), max_size=40)


@given(answers)
def test_an_observation_remembers_the_last_answer_and_the_last_change(
    history: list[tuple[float, Phase, int]],
) -> None:
    observation, now_s = seen(None), 0.0
    moves: list[tuple[float, Phase, int]] = []
    for passed_s, phase, progress in history:
        now_s += passed_s
        observation = observation.after(says(phase, progress), now_s)
        if not moves or moves[-1][1:] != (phase, progress):
            moves.append((now_s, phase, progress))
        assert observation.answered_s == now_s
        assert observation.progressed_s == moves[-1][0]


@given(answers)
def test_who_answers_and_gets_on_in_time_is_never_accused(
    history: list[tuple[float, Phase, int]],
) -> None:
    observation, now_s = seen(None), 0.0
    for progress, (passed_s, phase, _) in enumerate(history):
        now_s += passed_s
        assert failed_because(observation, now_s, LIMITS) is None
        observation = observation.after(says(phase, progress), now_s)
        assert failed_because(observation, now_s, LIMITS) is None


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_its_deadline(phase: Phase) -> None:
    limit_s = LIMITS.of(phase)
    assert limit_s == (None if phase in IDLE else silence_allowed_s(phase))


# Workers that are all well and wait for each other


def idle(since_s: float, phase: Phase = "waiting") -> Observation:
    return seen(says(phase), 100.0, since_s)


def test_learner_and_rollouts_that_wait_for_each_other_stand_still() -> None:
    cause = stalled_because(14.0, [idle(80.0), idle(88.0)], 100.0, 10.0)
    assert cause == (
        "the learner has had no batch for 14 s and no rollout was asked for blocks for 12 s "
        "(limit 10 s): replay stands still"
    )


@pytest.mark.parametrize(
    ("request_age_s", "rollouts"),
    [
        (None, [idle(0.0)]),  # paused, or not there yet
        (0.2, [idle(0.0)]),  # the ratio holds rollouts back while the learner has batches
        (10.0, [idle(0.0)]),
        (60.0, [idle(0.0), idle(91.0)]),  # one was asked just now
        (60.0, [idle(0.0), idle(0.0, "working")]),  # one collects: it has a deadline of its own
        (60.0, [idle(0.0), seen(None)]),  # one starts
        (60.0, []),
    ],
)
def test_whoever_has_something_to_do_does_not_stand_still(
    request_age_s: float | None, rollouts: list[Observation]
) -> None:
    assert stalled_because(request_age_s, rollouts, 100.0, 10.0) is None


@given(st.none() | seconds, st.lists(st.tuples(phases, seconds), max_size=4), st.floats(0.1, 1e3))
def test_nobody_stands_still_before_the_limit(
    request_age_s: float | None, rollouts: list[tuple[Phase, float]], limit_s: float
) -> None:
    crew = [seen(says(phase), 1e6, 1e6 - idle_s) for phase, idle_s in rollouts]
    cause = stalled_because(request_age_s, crew, 1e6, limit_s)
    wait = crew and all(phase == "waiting" and idle_s > limit_s + 1 for phase, idle_s in rollouts)
    if wait and request_age_s is not None and request_age_s > limit_s:
        assert cause is not None
    if any(phase != "waiting" or idle_s < limit_s - 1 for phase, idle_s in rollouts):
        assert cause is None


# The supervisor's own watch


looks = st.lists(st.floats(-1e7, 1e7, allow_nan=False), min_size=1, max_size=60)


@given(looks, st.floats(0.1, 100))
def test_a_watch_never_goes_back_nor_counts_more_than_a_tick(
    times_s: list[float], longest_s: float
) -> None:
    watch, last_s = Watch(longest_s), 0.0
    for monotonic_s in times_s:
        watched_s = watch.look(monotonic_s)
        assert last_s <= watched_s <= last_s + longest_s * (1 + 1e-9)
        last_s = watched_s


@given(st.lists(st.floats(0.0, 1.99), max_size=60), st.floats(0, 1e6))
def test_a_watch_that_is_looked_at_in_time_counts_every_second(
    passed_s: list[float], start_s: float
) -> None:
    watch, now_s = Watch(longest_tick_s=2.0), start_s
    assert watch.look(now_s) == 0.0
    for step_s in passed_s:
        now_s += step_s
        watch.look(now_s)
    assert watch.look(now_s) == pytest.approx(sum(passed_s), abs=1e-6)


@given(st.floats(3.0, 1e6), st.lists(phases, min_size=1, max_size=5))
def test_a_supervisor_that_was_frozen_accuses_nobody(frozen_s: float, crew: list[Phase]) -> None:
    """A host that slept, or a cgroup that was frozen: everybody was, and nobody could answer."""
    watch = Watch(longest_tick_s=2.0)
    now_s = watch.look(1_000.0)
    workers = [seen(says(phase), now_s, now_s) for phase in crew]
    now_s = watch.look(1_000.0 + frozen_s)
    assert all(failed_because(worker, now_s, LIMITS) is None for worker in workers)
    for worker, phase in zip(workers, crew, strict=True):  # and they have time to answer now
        assert failed_because(worker, now_s + 0.75 * silence_allowed_s(phase), LIMITS) is None


@pytest.mark.parametrize("tick_s", [0.2, 1.0, 2.0])
def test_a_supervisor_that_watches_finds_who_hangs(tick_s: float) -> None:
    watch, hung, monotonic_s = Watch(longest_tick_s=2.0), seen(says("working")), 50.0
    now_s = watch.look(monotonic_s)
    while failed_because(hung, now_s, LIMITS) is None:
        monotonic_s += tick_s
        now_s = watch.look(monotonic_s)
        assert monotonic_s < 50.0 + LIMITS.working_s + 2 * tick_s
    later = replace(hung, health=says("working", failure="it says why"))
    assert failed_because(later, now_s, LIMITS) == "it says why"
