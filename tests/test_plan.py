"""What to do about workers that failed: Erlang's rules, as a pure function of records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_cluster.supervision.plan import (
    Action,
    GiveUp,
    Kind,
    Park,
    RestartRule,
    Start,
    Stop,
    WorkerRecord,
    plan,
)

RULE = RestartRule(backoff_s=1.0, max_restarts=3, window_s=100.0)
KINDS: dict[str, Kind] = {
    "replay": "replay",
    "learner": "learner",
    "rollout/0": "rollout",
    "rollout/1": "rollout",
    "rollout/2": "rollout",
    "evaluator": "evaluator",
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(name: str = "Pong", **failures_s: tuple[float, ...] | None) -> list[WorkerRecord]:
    """A task's workers in the order of dependence; those named are down, with their failures."""
    records = []
    for short, kind in KINDS.items():
        key = short.replace("/", "_")
        record = WorkerRecord(f"{name}/{short}", name, kind, key not in failures_s)
        times = failures_s.get(key) or ()
        records.append(replace(record, failures_s=times, cause="boom" if times else ""))
    return records


def decide(
    workers: list[WorkerRecord],
    now_s: float = 1_000.0,
    parked: frozenset[str] = frozenset(),
    rule: RestartRule = RULE,
    seed: int = 0,
) -> list[Action]:
    return plan(workers, parked, now_s, rule, rng(seed))


def test_where_everybody_runs_there_is_nothing_to_do() -> None:
    assert decide(task()) == []


def test_a_task_that_never_ran_is_started_in_the_order_of_dependence() -> None:
    down = task(replay=(), learner=(), rollout_0=(), rollout_1=(), rollout_2=(), evaluator=())
    assert decide(down) == [Start(f"Pong/{short}") for short in KINDS]


@pytest.mark.parametrize("key", ["learner", "rollout_0", "rollout_2", "evaluator"])
def test_one_for_one(key: str) -> None:
    """Nobody else's work depends on what these hold; the other rollouts go on."""
    name = f"Pong/{key.replace('_', '/')}"
    assert decide(task(**{key: (900.0,)})) == [Start(name)]


def test_the_rest_for_replay() -> None:
    """Learner and rollouts hold what a dead replay gave them; the evaluator does not."""
    why = "Pong/replay is replaced"
    rest = ["Pong/learner", "Pong/rollout/0", "Pong/rollout/1", "Pong/rollout/2"]
    assert decide(task(replay=(900.0,))) == [
        *(Stop(name, why) for name in rest),
        Start("Pong/replay"),
        *(Start(name) for name in rest),
    ]


def test_a_replaced_replay_touches_no_other_task() -> None:
    workers = [*task("Breakout"), *task("Pong", replay=(900.0,))]
    assert all("Breakout" not in str(action) for action in decide(workers))


def test_who_is_down_beside_replay_is_started_once() -> None:
    actions = decide(task(replay=(900.0,), learner=(900.0,), rollout_1=(), rollout_2=()))
    assert actions == [
        Stop("Pong/rollout/0", "Pong/replay is replaced"),
        Start("Pong/replay"),
        Start("Pong/rollout/0"),
        Start("Pong/learner"),
        Start("Pong/rollout/1"),
        Start("Pong/rollout/2"),
    ]


def test_rollouts_that_fell_together_are_each_started_once() -> None:
    down = task(rollout_0=(900.0,), rollout_1=(900.0,))
    assert decide(down) == [Start("Pong/rollout/0"), Start("Pong/rollout/1")]


@pytest.mark.parametrize("dependent", ["learner", "rollout_0"])
def test_nobody_is_started_to_work_on_a_replay_that_is_not_there(dependent: str) -> None:
    """It would fail at once and use up the restarts of its task."""
    waiting = task(replay=(990.0, 999.9), **{dependent: ()})
    assert decide(waiting) == []
    later = decide(waiting, now_s=1_010.0)
    assert Start(f"Pong/{dependent.replace('_', '/')}") in later


def test_the_evaluator_does_not_wait_for_replay() -> None:
    assert decide(task(replay=(990.0, 999.9), evaluator=())) == [Start("Pong/evaluator")]


@pytest.mark.parametrize("failures", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_each_further_wait_is_twice_as_long_and_jitters_by_a_fifth(
    failures: int, seed: int
) -> None:
    now_s, wait_s = 1_000.0, 2.0 ** (failures - 1)
    earlier = tuple(now_s - 50 - i for i in range(failures - 1, 0, -1))

    def starts(since_s: float) -> bool:
        workers = task(learner=(*earlier, now_s - since_s))
        return decide(workers, now_s, seed=seed) == [Start("Pong/learner")]

    assert not starts(0.79 * wait_s)
    assert starts(1.21 * wait_s)


def test_waits_differ_so_that_workers_that_fell_together_rise_apart() -> None:
    """Of many, some come back before the plain wait is over and some after."""
    now_s = 1_000.0
    workers = task(learner=(now_s - 1.0,))
    outcomes = {bool(decide(workers, now_s, seed=seed)) for seed in range(50)}
    assert outcomes == {True, False}


def test_failures_from_before_the_window_are_forgiven() -> None:
    old = tuple(float(t) for t in range(10))
    assert decide(task(learner=(*old, 998.9))) == [Start("Pong/learner")]
    assert decide(task(learner=old)) == [Start("Pong/learner")]


def test_one_failure_more_than_the_restarts_allowed_parks_the_task() -> None:
    allowed = (910.0, 920.0, 930.0)
    assert decide(task(learner=allowed)) == [Start("Pong/learner")]
    (park,) = decide(task(learner=(*allowed, 999.0)))
    assert park == Park(
        "Pong",
        "Pong/learner failed 4 times within 100 s, more than the 3 restarts allowed; "
        "last cause: boom",
    )


def test_parking_one_task_leaves_the_others_their_restarts() -> None:
    hopeless = task("Pong", learner=(910.0, 920.0, 930.0, 999.0), evaluator=())
    mended = task("Breakout", rollout_0=(900.0,))
    for workers in ([*hopeless, *mended], [*mended, *hopeless]):
        actions = decide(workers)
        parks = [action for action in actions if isinstance(action, Park)]
        assert [park.task for park in parks] == ["Pong"]
        assert [a for a in actions if a not in parks] == [Start("Breakout/rollout/0")]


def test_a_task_that_is_parked_now_gets_nothing_even_for_workers_that_came_before() -> None:
    workers = task(replay=(), learner=(910.0, 920.0, 930.0, 999.0), evaluator=())
    (action,) = decide(workers)
    assert isinstance(action, Park)


def test_a_parked_task_gets_nothing() -> None:
    down = task(replay=(), learner=(910.0, 920.0, 930.0, 999.0), rollout_0=())
    assert decide(down, parked=frozenset({"Pong"})) == []


def test_a_task_does_without_an_evaluator_that_always_fails() -> None:
    failed = (910.0, 920.0, 930.0, 999.0)
    workers = task(evaluator=failed, learner=(900.0,))
    (started, given_up) = decide(workers)
    assert started == Start("Pong/learner")
    assert isinstance(given_up, GiveUp)
    assert given_up.worker == "Pong/evaluator"
    assert "failed 4 times within 100 s" in given_up.reason
    assert decide(workers, parked=frozenset({"Pong/evaluator"})) == [started]


def test_without_restarts_the_first_failure_parks() -> None:
    rule = replace(RULE, max_restarts=0)
    assert decide(task(learner=()), rule=rule) == [Start("Pong/learner")]
    (action,) = decide(task(learner=(999.0,)), rule=rule)
    assert isinstance(action, Park)


def test_the_same_records_and_random_state_give_the_same_actions() -> None:
    workers = [*task("A", learner=(999.0,)), *task("B", rollout_0=(998.0, 999.0), replay=(999.0,))]
    for seed in range(10):
        assert decide(workers, seed=seed) == decide(workers, seed=seed)


# Random histories


@dataclass
class World:
    """Workers of two tasks as the actions leave them; time in s."""

    records: dict[str, WorkerRecord] = field(
        default_factory=lambda: {
            worker.name: replace(worker, alive=False)
            for name in ("Pong", "Breakout")
            for worker in task(name)
        }
    )
    parked: set[str] = field(default_factory=set)
    now_s: float = 0.0
    starts_s: dict[str, list[float]] = field(default_factory=dict)

    def kill(self, name: str) -> None:
        record = self.records[name]
        if record.alive:
            times = (*record.failures_s, self.now_s)
            self.records[name] = replace(record, alive=False, failures_s=times, cause="killed")

    def perform(self, action: Action) -> None:
        if isinstance(action, Park):
            assert action.task not in self.parked
            self.parked.add(action.task)
            return
        record = self.records[action.worker]
        assert not self.parked & {record.task, record.name}
        if isinstance(action, GiveUp):
            assert record.kind == "evaluator"
            self.parked.add(record.name)
        elif isinstance(action, Stop):
            assert record.alive
        else:
            assert not record.alive
            replay = self.records[f"{record.task}/replay"]
            assert record.kind in ("replay", "evaluator") or replay.alive
            self.starts_s.setdefault(action.worker, []).append(self.now_s)
        self.records[action.worker] = replace(record, alive=isinstance(action, Start))

    def tick(self, random: np.random.Generator, seconds: float) -> None:
        self.now_s += seconds
        workers = list(self.records.values())
        actions = plan(workers, frozenset(self.parked), self.now_s, RULE, random)
        given_up = {action.task for action in actions if isinstance(action, Park)}
        for action in sorted(actions, key=lambda action: not isinstance(action, Park)):
            self.perform(action)
        assert given_up <= self.parked


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.01, 0.05]))
def test_through_any_history_only_the_dead_are_started_and_the_parked_get_nothing(
    seed: int, deaths_per_tick: float
) -> None:
    world, random = World(), rng(seed)
    for _ in range(150):
        for name in world.records:
            if random.random() < deaths_per_tick:
                world.kill(name)
        world.tick(random, random.exponential(1.0))
    for _ in range(20):  # quiet: what is not parked comes back
        world.tick(random, 10.0)
    for record in world.records.values():
        assert record.alive or world.parked & {record.task, record.name}


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_worker_that_always_dies_is_restarted_as_often_as_allowed_and_then_parked(
    seed: int,
) -> None:
    world, random = World(), rng(seed)
    world.tick(random, 1.0)
    while "Pong" not in world.parked:
        world.kill("Pong/learner")
        world.tick(random, 0.5)
    assert len(world.starts_s["Pong/learner"]) == 1 + RULE.max_restarts
    assert world.parked == {"Pong"}
    waits_s = np.diff(world.starts_s["Pong/learner"])
    assert (waits_s[1:] > waits_s[:-1]).all()
