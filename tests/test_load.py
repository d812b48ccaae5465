"""Load tiers: what a person asked for, less under pressure, and back again without flapping."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.config import LoadConfig, TierConfig
from rl_cluster.supervision.load import FEW_ENVIRONMENTS, SMALL_BATCH, Cap, Load, above, below
from rl_cluster.supervision.pressure import Level, Pressure
from rl_cluster.supervision.tiers import (
    LoadRule,
    LoadState,
    next_load,
    request,
    start,
    with_cap,
)

LIGHT, MEDIUM, HEAVY = Load(2, 32, 512), Load(4, 64, 1024), Load(8, 256, 2048)
CUSTOM = Load(3, 16, 128)
FLOOR = Load(1, FEW_ENVIRONMENTS, SMALL_BATCH)
RULE = LoadRule(
    {"light": LIGHT, "medium": MEDIUM, "heavy": HEAVY},
    CUSTOM,
    tasks=10,
    dwell_s=100.0,
    cooldown_s=40.0,
    settle_s=15.0,
)
PRESSURES: dict[Level, Pressure] = {
    "high": Pressure("high", ("memory available is 5.0 %, at most 7.0 %",)),
    "between": Pressure("between", ("disk free is 1.00 GB, below 3.00 GB",)),
    "low": Pressure("low"),
}
TICK_S = 5.0

loads = st.builds(Load, st.integers(1, 12), st.integers(1, 600), st.integers(1, 5000))


class Clock:
    """Ticks of one run, on a clock of its own."""

    def __init__(self, state: LoadState, rule: LoadRule = RULE) -> None:
        self.state, self.rule, self.now_s = state, rule, 1_000.0
        self.reasons: list[str] = []

    def run(self, level: Level, seconds: float, tick_s: float = TICK_S) -> LoadState:
        """Ticks under one pressure, until so many seconds have passed."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += tick_s
            self.tick(level)
        return self.state

    def tick(self, level: Level) -> LoadState:
        self.state, reason = next_load(self.state, PRESSURES[level], self.now_s, self.rule)
        self.reasons += [reason] if reason else []
        return self.state

    def loads(self, level: Level, seconds: float) -> list[Load]:
        """The loads, each once, that so much time under one pressure leads through."""
        seen = [self.state.load]
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            load = self.run(level, TICK_S).load
            seen += [load] if load != seen[-1] else []
        return seen


def is_within(load: Load, bound: Load) -> bool:
    return load.at_most(bound) == load


def test_heavy_comes_down_by_way_of_medium_and_light_to_the_floor() -> None:
    ladder = [HEAVY]
    while below(ladder[-1]) != ladder[-1]:
        ladder.append(below(ladder[-1]))
    sizes = [(load.games, load.environments) for load in ladder]
    assert sizes[:10] == [
        (8, 256), (7, 256), (6, 256), (5, 256), (5, 128),
        (4, 128), (4, 64), (3, 64), (3, 32), (2, 32),
    ]  # fmt: skip
    assert ladder[-1] == FLOOR


@given(loads, st.booleans())
def test_each_step_down_takes_something_and_gives_nothing(load: Load, games_first: bool) -> None:
    for _ in range(30):
        lower = below(load, games_first)
        assert is_within(lower, load)
        assert lower != load or is_within(load, FLOOR)
        load = lower
    assert is_within(load, FLOOR)


@given(loads, loads, st.booleans())
def test_each_step_up_gives_something_and_ends_at_the_goal(
    goal: Load, other: Load, games_last: bool
) -> None:
    load = other.at_most(goal)
    for _ in range(40):
        higher = above(load, goal, games_last)
        assert is_within(load, higher) and is_within(higher, goal)
        assert higher != load or load == goal
        load = higher
    assert load == goal


@given(loads)
def test_a_load_above_its_goal_is_not_lowered_by_a_step_up(goal: Load) -> None:
    assert above(Load(99, 9_999, 99_999), goal) == Load(99, 9_999, 99_999)


def test_the_configuration_gives_the_rule() -> None:
    config = LoadConfig(tiers={"mine": TierConfig(1, 4, 32)}, dwell_s=7.0)
    rule = LoadRule.of(config, CUSTOM, tasks=3)
    assert rule == LoadRule({"mine": Load(1, 4, 32)}, CUSTOM, 3, 7.0, 300.0, 15.0)
    assert rule.goal("custom") == CUSTOM
    assert LoadRule.of(LoadConfig(), CUSTOM, 3).goal("auto") == HEAVY


@pytest.mark.parametrize(
    ("tier", "load"),
    [("light", LIGHT), ("medium", MEDIUM), ("heavy", HEAVY), ("custom", CUSTOM), ("auto", LIGHT)],
)
def test_a_run_begins_with_what_was_asked_for_and_auto_with_light(tier: str, load: Load) -> None:
    clock = Clock(start(tier, RULE))
    assert clock.state.load == load
    assert clock.tick("low").load == load


def test_an_unknown_tier_is_refused_with_those_that_there_are() -> None:
    for ask in (lambda: start("huge", RULE), lambda: request(start("light", RULE), "huge", RULE)):
        with pytest.raises(ValueError, match="'huge': ask for one of custom, auto, light, medium"):
            ask()


def test_auto_adds_a_game_or_doubles_environments_in_turns_up_to_the_biggest_tier() -> None:
    clock = Clock(start("auto", RULE))
    seen = clock.loads("low", 20 * RULE.dwell_s)
    assert [(load.games, load.environments) for load in seen] == [
        (2, 32), (3, 32), (3, 64), (4, 64), (4, 128),
        (5, 128), (5, 256), (6, 256), (7, 256), (8, 256),
    ]  # fmt: skip
    assert [load.batch for load in seen][:5] == [512, 512, 1024, 1024, 2048]
    assert seen[-1] == HEAVY


def test_auto_adds_no_game_that_does_not_exist() -> None:
    clock = Clock(start("auto", RULE), replace(RULE, tasks=3))
    assert clock.run("low", 30 * RULE.dwell_s).load == Load(3, 256, 2048)


def test_each_step_up_waits_for_a_whole_dwell() -> None:
    clock = Clock(start("auto", RULE))
    clock.tick("low")
    assert clock.run("low", RULE.dwell_s - TICK_S).load == LIGHT
    assert clock.run("low", TICK_S).load == Load(3, 32, 512)
    assert clock.run("low", RULE.dwell_s - TICK_S).load == Load(3, 32, 512)
    assert clock.run("low", TICK_S).load == Load(3, 64, 1024)


@pytest.mark.parametrize("level", ["between", "high"])
def test_a_dwell_is_one_stretch_without_pressure(level: Level) -> None:
    clock = Clock(start("auto", RULE))
    clock.run("low", RULE.dwell_s - TICK_S)
    clock.tick(level)
    state = clock.run("low", RULE.dwell_s - TICK_S)
    assert state.load == LIGHT


def test_pressure_takes_optional_work_at_once_then_a_step_each_settling_time() -> None:
    clock = Clock(start("medium", RULE))
    clock.tick("high")
    assert (clock.state.load, clock.state.shed) == (MEDIUM, True)
    assert clock.run("high", RULE.settle_s - TICK_S).load == MEDIUM
    assert clock.run("high", TICK_S).load == Load(3, 64, 1024)
    assert clock.run("high", RULE.settle_s).load == Load(3, 32, 512)
    assert clock.run("high", 1_000.0).load == FLOOR
    assert clock.state.requested == "medium"


def test_between_the_thresholds_nothing_moves() -> None:
    for state in (start("heavy", RULE), replace(start("heavy", RULE), load=FLOOR, shed=True)):
        clock = Clock(state)
        after = clock.run("between", 50 * RULE.dwell_s)
        assert (after.load, after.shed) == (state.load, state.shed)
        assert clock.reasons == []


def test_after_pressure_optional_work_returns_first_after_cooldown_and_dwell() -> None:
    clock = Clock(start("light", RULE))
    clock.run("high", RULE.settle_s + TICK_S)
    assert (clock.state.load, clock.state.shed) == (Load(2, 16, 256), True)
    assert clock.run("low", RULE.cooldown_s + RULE.dwell_s - TICK_S).shed
    assert not clock.run("low", TICK_S).shed
    assert clock.state.load == Load(2, 16, 256)
    assert clock.run("low", RULE.dwell_s).load == LIGHT


def test_custom_sheds_then_stops_games_and_only_then_halves_environments() -> None:
    clock = Clock(start("custom", RULE))
    assert clock.run("high", TICK_S).shed
    assert clock.loads("high", 200.0)[:4] == [
        CUSTOM, replace(CUSTOM, games=2), replace(CUSTOM, games=1), Load(1, 8, 64),
    ]  # fmt: skip
    clock.run("low", 20 * RULE.dwell_s)
    assert (clock.state.load, clock.state.shed) == (CUSTOM, False)


def test_a_tier_replaces_what_a_task_configures_and_custom_bounds_it() -> None:
    assert start("light", RULE).sizes(environments=4, batch=4_096) == (32, 512)
    assert start("custom", RULE).sizes(environments=16, batch=64) == (16, 64)
    less = replace(start("custom", RULE), load=Load(1, 8, 64))
    assert less.sizes(environments=16, batch=128) == (8, 64)
    assert less.sizes(environments=4, batch=32) == (4, 32)


def test_games_without_a_task_are_no_relief_and_so_no_step() -> None:
    clock = Clock(replace(start("heavy", RULE), shed=True), replace(RULE, tasks=2))
    assert clock.tick("high").load == Load(2, 128, 1024)


@pytest.mark.parametrize("level", ["low", "between"])
def test_a_person_is_obeyed_on_the_next_tick_even_in_the_cooldown(level: Level) -> None:
    clock = Clock(start("medium", RULE))
    clock.run("high", 60.0)
    clock.state = request(clock.state, "heavy", RULE)
    clock.now_s += TICK_S
    assert (clock.tick(level).load, clock.state.shed) == (HEAVY, False)
    assert "heavy was asked for" in clock.reasons[-1]
    clock.state = request(clock.state, "light", RULE)
    assert clock.tick(level).load == LIGHT


def test_asking_for_the_same_tier_takes_back_what_pressure_took() -> None:
    clock = Clock(start("medium", RULE))
    clock.run("high", 100.0)
    clock.state = request(clock.state, "medium", RULE)
    assert (clock.tick("between").load, clock.state.shed) == (MEDIUM, False)


def test_asking_for_auto_again_changes_nothing() -> None:
    clock = Clock(start("auto", RULE))
    clock.run("low", 3 * RULE.dwell_s)
    assert request(clock.state, "auto", RULE) == clock.state


def test_under_pressure_a_person_gets_less_but_not_more() -> None:
    clock = Clock(replace(start("medium", RULE), shed=True, settle_left_s=100.0))
    clock.state = request(clock.state, "heavy", RULE)
    assert (clock.tick("high").load, clock.state.requested) == (MEDIUM, "heavy")
    clock.state = request(clock.state, "light", RULE)
    assert clock.tick("high").load == LIGHT
    clock.run("low", 1.0)
    assert not clock.state.asked


def test_a_cap_bounds_the_load_from_its_first_moment_and_for_its_time() -> None:
    cap = Cap(MEDIUM, left_s=1_000.0, reason="the host rebooted")
    clock = Clock(with_cap(start("heavy", RULE), cap))
    assert clock.state.load == MEDIUM
    assert clock.run("low", 1_000.0 - TICK_S).load == MEDIUM
    assert clock.loads("low", 2_000.0)[1:] == [
        Load(4, 128, 2048), Load(5, 128, 2048), Load(5, 256, 2048),
        Load(6, 256, 2048), Load(7, 256, 2048), HEAVY,
    ]  # fmt: skip
    assert clock.state.cap is None


def test_a_person_does_not_get_past_a_cap() -> None:
    clock = Clock(with_cap(start("light", RULE), Cap(MEDIUM, 1_000.0, "the host rebooted")))
    clock.state = request(clock.state, "heavy", RULE)
    assert clock.tick("low").load == MEDIUM
    assert "the host rebooted" in clock.reasons[-1]
    assert with_cap(clock.state, None).cap is None


def test_a_tier_made_smaller_takes_effect_on_the_next_tick() -> None:
    clock = Clock(start("heavy", RULE))
    clock.rule = replace(RULE, tiers={**RULE.tiers, "heavy": MEDIUM})
    assert clock.tick("low").load == MEDIUM
    assert clock.reasons[-1].endswith("heavy is 4 games × 64 environments, batch 1024 now")


def test_a_change_says_from_what_to_what_and_why() -> None:
    clock = Clock(replace(start("light", RULE), shed=True))
    clock.tick("high")
    assert clock.reasons == [
        "2 games × 32 environments, batch 512, without optional work → "
        "2 games × 16 environments, batch 256, without optional work: "
        "memory available is 5.0 %, at most 7.0 %"
    ]


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0, 1e9])
def test_a_jump_of_the_clock_is_no_dwell_and_stops_none(jump_s: float) -> None:
    clock = Clock(start("auto", RULE))
    clock.now_s = 1e10
    clock.run("low", RULE.dwell_s / 4)
    clock.now_s += jump_s
    assert clock.tick("low").load == LIGHT
    assert clock.run("low", RULE.dwell_s).load == Load(3, 32, 512)


def test_the_state_goes_through_json_at_any_moment() -> None:
    rng = random.Random(3)
    clock = Clock(with_cap(start("auto", RULE), Cap(MEDIUM, 300.0, "the host rebooted")))
    for _ in range(300):
        levels: list[Level] = ["low", "low", "low", "between", "high"]
        clock.run(rng.choice(levels), 30.0)
        record = json.loads(json.dumps(clock.state.to_record(), allow_nan=False))
        assert LoadState.from_record(record) == clock.state


@pytest.mark.parametrize(
    "damage",
    [
        {"load": {"games": 0, "environments": 1, "batch": 1}},
        {"load": {"games": 2}},
        {"calm_s": -1.0},
        {"calm_s": "nan"},
        {"requested": 3},
        {"failed_trials": -2},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(damage))):
        LoadState.from_record({**start("light", RULE).to_record(), **damage})


@dataclass
class History:
    """One random history of a run, each tick held against the rules that it must keep."""

    rng: random.Random
    state: LoadState
    rule: LoadRule = RULE
    now_s: float = 1e6
    since_up_s: float = float("inf")
    since_down_s: float = float("inf")

    def tick(self) -> None:
        rng, before = self.rng, self.state
        if rng.random() < 0.05:
            tier = rng.choice(["custom", "auto", "light", "medium", "heavy"])
            self.state = request(before, tier, self.rule)
        asked = self.state.asked
        capped = rng.random() < 0.03
        if capped:
            self.state = with_cap(self.state, Cap(below(self.state.load), rng.uniform(1, 500), "r"))
        before = self.state if capped else before
        level: Level = rng.choice(["low"] * 6 + ["between"] + ["high"] * 2)  # type: ignore[arg-type]
        passed_s = rng.choice([0.0, 1.0, 5.0, 20.0, 60.0])
        jump_s = rng.choice([0.0] * 20 + [-3_600.0, 3_600.0])
        self.now_s += passed_s + jump_s
        passed_s = min(max(passed_s + jump_s, 0.0), 60.0)
        self.since_up_s += passed_s
        self.since_down_s += passed_s
        self.state, reason = next_load(self.state, PRESSURES[level], self.now_s, self.rule)
        self.check(before, level, asked, reason)

    def check(self, before: LoadState, level: Level, asked: bool, reason: str | None) -> None:
        after = self.state
        changed = (after.load, after.shed) != (before.load, before.shed)
        fewer = is_within(after.load, before.load) and after.shed >= before.shed
        assert (reason is not None) == changed
        assert is_within(after.load, self.rule.goal(after.requested))
        assert after.cap is None or is_within(after.load, after.cap.load)
        if asked and level != "high":
            self.since_up_s = self.since_down_s = float("inf")
        if level == "high":
            assert fewer
            at_floor = is_within(after.load, FLOOR) and before.shed
            assert changed or asked or at_floor or self.since_down_s < self.rule.settle_s
        elif asked:
            pass
        elif level == "between":
            assert not changed
        elif changed:
            assert is_within(before.load, after.load) and after.shed <= before.shed
            assert self.since_up_s >= self.rule.dwell_s
            assert self.since_down_s >= self.rule.dwell_s + self.rule.cooldown_s
            self.since_up_s = 0.0
        if changed and level == "high" and not asked:
            self.since_down_s = 0.0
        elif asked and level == "high":  # less by request is no step, but both may come together
            self.since_down_s = self.rule.cooldown_s - after.cooldown_left_s


def test_ten_thousand_random_histories_keep_the_rules() -> None:
    for seed in range(10_000):
        rng = random.Random(seed)
        tier = rng.choice(["custom", "auto", "light", "medium", "heavy"])
        history = History(rng, start(tier, RULE))
        for _ in range(25):
            history.tick()


@pytest.mark.parametrize("seed", range(100))
def test_after_endless_calm_all_that_was_asked_for_runs(seed: int) -> None:
    history = History(random.Random(seed), start("auto", RULE))
    for _ in range(100):
        history.tick()
    clock = Clock(history.state)
    state = clock.run("low", 60 * RULE.dwell_s, tick_s=50.0)
    assert (state.load, state.shed) == (RULE.goal(state.requested), False)


@pytest.mark.parametrize("bearable", [FLOOR, Load(1, 64, 512), MEDIUM, Load(7, 256, 2048)])
def test_on_a_machine_that_bears_less_the_load_does_not_flap(bearable: Load) -> None:
    """A week of ticks, with every step too far answered by pressure: seldom, and ever less so."""
    clock = Clock(start("heavy", RULE), replace(RULE, dwell_s=2_400.0, cooldown_s=300.0))
    over_s = 0
    for _ in range(7 * 24 * 60):
        over = not is_within(clock.state.load, bearable)
        over_s += 60 * over
        clock.run("high" if over else "low", 60.0, tick_s=60.0)
    assert len(clock.reasons) <= 60
    assert over_s <= 60 * 60
