"""What to do about workers that failed: Erlang's rules, as a pure function of records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from rl_cluster.supervision.plan import (
    Action,
    Desired,
    GiveUp,
    Kind,
    Park,
    RestartRule,
    Retire,
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
    given_up: frozenset[str] = frozenset(),
    rule: RestartRule = RULE,
    seed: int = 0,
    tasks: frozenset[str] = frozenset({"Pong", "Breakout", "A", "B"}),
) -> list[Action]:
    return plan(Desired(tasks, given_up, rule), workers, now_s, rng(seed))


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


@pytest.mark.parametrize("key", ["replay", "learner", "rollout_1", "evaluator"])
def test_the_first_restart_in_a_window_is_due_at_once(key: str) -> None:
    """Most failures are single ones, and each second without a learner is lost."""
    workers = task(**{key: (1_000.0,)})
    assert Start(f"Pong/{key.replace('_', '/')}") in decide(workers, now_s=1_000.0)


@pytest.mark.parametrize("failures", [2, 3, 5, 12])
@pytest.mark.parametrize("seed", range(20))
def test_each_further_wait_is_twice_as_long_up_to_a_limit_and_jitters_by_a_fifth(
    failures: int, seed: int
) -> None:
    rule = replace(RULE, max_restarts=100, max_backoff_s=30.0)
    now_s, wait_s = 1_000.0, min(30.0, 2.0 ** (failures - 2))
    earlier = tuple(now_s - 40 - i for i in range(failures - 1, 0, -1))

    def starts(since_s: float) -> bool:
        workers = task(learner=(*earlier, now_s - since_s))
        return decide(workers, now_s, rule=rule, seed=seed) == [Start("Pong/learner")]

    assert not starts(0.79 * wait_s)
    assert starts(1.21 * wait_s)


def test_waits_differ_so_that_workers_that_fell_together_rise_apart() -> None:
    """Of many, some come back before the plain wait is over and some after."""
    now_s = 1_000.0
    workers = task(learner=(now_s - 9.0, now_s - 1.0))
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


def test_lives_in_a_row_without_progress_park_however_slowly_they_end() -> None:
    """A learner that is killed for memory ten minutes after each start fails in no window."""
    rule = replace(RULE, max_fruitless=2)

    def fruitless(lives: int, key: str = "learner") -> list[Action]:
        workers = [
            replace(w, fruitless=lives if w.name == f"Pong/{key}" else 0)
            for w in task(**{key: (100.0,)})
        ]
        return decide(workers, rule=rule)

    assert fruitless(2) == [Start("Pong/learner")]
    assert fruitless(3) == [
        Park(
            "Pong",
            "Pong/learner failed 3 times in a row without any progress, more than the 2 allowed; "
            "last cause: boom",
        )
    ]
    (given_up,) = fruitless(3, "evaluator")
    assert isinstance(given_up, GiveUp)


def test_who_lives_is_not_parked_for_what_is_past() -> None:
    workers = [replace(w, failures_s=(999.0,) * 9, fruitless=9) for w in task()]
    assert decide(workers, rule=replace(RULE, max_fruitless=1)) == []


def test_a_task_whose_turn_is_over_is_retired_once_and_gets_nothing_else() -> None:
    others = task("Breakout", learner=(900.0,))
    actions = decide([*task("Pong", rollout_0=(900.0,)), *others], tasks=frozenset({"Breakout"}))
    assert actions == [Retire("Pong"), Start("Breakout/learner")]


def test_a_task_that_waits_for_its_turn_gets_nothing() -> None:
    down = {key.replace("/", "_"): () for key in KINDS}
    assert decide(task("Pong", **down), tasks=frozenset({"Breakout"})) == []


def test_a_hopeless_task_whose_turn_is_over_is_not_parked_now() -> None:
    hopeless = task(learner=(910.0, 920.0, 930.0, 999.0))
    assert decide(hopeless, tasks=frozenset()) == [Retire("Pong")]


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


def test_a_task_given_up_before_gets_nothing() -> None:
    down = task(replay=(), learner=(910.0, 920.0, 930.0, 999.0), rollout_0=())
    assert decide(down, given_up=frozenset({"Pong"})) == []


def test_a_task_does_without_an_evaluator_that_always_fails() -> None:
    failed = (910.0, 920.0, 930.0, 999.0)
    workers = task(evaluator=failed, learner=(900.0,))
    (started, given_up) = decide(workers)
    assert started == Start("Pong/learner")
    assert isinstance(given_up, GiveUp)
    assert given_up.worker == "Pong/evaluator"
    assert "failed 4 times within 100 s" in given_up.reason
    assert decide(workers, given_up=frozenset({"Pong/evaluator"})) == [started]


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


RANDOM = RestartRule(1.0, max_restarts=3, window_s=60.0, max_backoff_s=8.0, max_fruitless=2)


@dataclass
class World:
    """Workers of two tasks as the actions leave them; time is injected, in s."""

    records: dict[str, WorkerRecord] = field(
        default_factory=lambda: {
            worker.name: replace(worker, alive=False)
            for name in ("Pong", "Breakout")
            for worker in task(name)
        }
    )
    tasks: set[str] = field(default_factory=lambda: {"Pong", "Breakout"})
    parked: set[str] = field(default_factory=set)
    """Tasks and evaluators."""
    now_s: float = 0.0
    failures: int = 0

    def kill(self, name: str, fruitful: bool) -> None:
        record = self.records[name]
        if record.alive:
            times = (*record.failures_s, self.now_s)
            fruitless = 0 if fruitful else record.fruitless + 1
            self.records[name] = replace(
                record, alive=False, failures_s=times, cause="killed", fruitless=fruitless
            )
            self.failures += 1

    def tick(self, random: np.random.Generator) -> list[Action]:
        """Plan, check every action against the world as the earlier ones left it, perform it."""
        desired = Desired(
            frozenset(self.tasks - self.parked), frozenset(self.parked - self.tasks), RANDOM
        )
        actions = plan(desired, list(self.records.values()), self.now_s, random)
        unwanted = {w.task for w in self.records.values() if w.alive} - desired.tasks
        assert [a.task for a in actions if isinstance(a, Retire)] == sorted(unwanted)
        for action in sorted(actions, key=lambda action: not isinstance(action, Park)):
            if isinstance(action, Retire):
                self.retire(action.task)
            elif isinstance(action, Park):
                self.park(action)
            else:
                self.treat(action, desired)
        return actions

    def retire(self, name: str) -> None:
        for worker in [w for w in self.records.values() if w.task == name]:
            self.records[worker.name] = replace(worker, alive=False)

    def park(self, action: Park) -> None:
        assert action.task not in self.parked
        down = [w for w in self.records.values() if w.task == action.task and not w.alive]
        assert any(self.hopeless(w) for w in down if w.kind != "evaluator")
        self.parked.add(action.task)

    def treat(self, action: Start | Stop | GiveUp, desired: Desired) -> None:
        record = self.records[action.worker]
        assert record.task in desired.tasks
        assert not self.parked & {record.task, record.name}
        if isinstance(action, GiveUp):
            assert record.kind == "evaluator" and not record.alive and self.hopeless(record)
            self.parked.add(record.name)
        elif isinstance(action, Stop):
            replay = self.records[f"{record.task}/replay"]
            assert record.alive and record.kind in ("learner", "rollout") and not replay.alive
        else:
            assert not record.alive and not self.hopeless(record)
            replay = self.records[f"{record.task}/replay"]
            assert record.kind in ("replay", "evaluator") or replay.alive
            replaced = record.kind in ("learner", "rollout") and self.was_stopped(record)
            assert replaced or not self.too_early(record)
        self.records[action.worker] = replace(record, alive=isinstance(action, Start))

    def was_stopped(self, record: WorkerRecord) -> bool:
        """Whether it was put down with its replay, and not by a failure of its own."""
        replay = self.records[f"{record.task}/replay"]
        return bool(replay.failures_s) and replay.failures_s[-1] >= max(
            record.failures_s, default=-1.0
        )

    def recent_s(self, record: WorkerRecord) -> list[float]:
        return [t for t in record.failures_s if self.now_s - t <= RANDOM.window_s]

    def hopeless(self, record: WorkerRecord) -> bool:
        many = len(self.recent_s(record)) > RANDOM.max_restarts
        return many or record.fruitless > RANDOM.max_fruitless

    def too_early(self, record: WorkerRecord) -> bool:
        recent_s = self.recent_s(record)
        if len(recent_s) < 2:
            return False
        wait_s = min(RANDOM.max_backoff_s, RANDOM.backoff_s * 2.0 ** (len(recent_s) - 2))
        return self.now_s - recent_s[-1] < 0.8 * wait_s


def live_through(random: np.random.Generator, ticks: int) -> World:
    """Let workers die and tasks come and go at random, then leave them in peace."""
    world, names = World(), list(World().records)
    deaths, changes, fruitful = random.choice((0.1, 1.0, 3.0)), random.choice((0.0, 0.2)), 0.6
    for passed_s, turn in zip(random.exponential(2.0, ticks), random.random(ticks), strict=True):
        world.now_s += passed_s
        for i in random.integers(len(names), size=random.poisson(deaths)):
            world.kill(names[i], bool(random.random() < fruitful))
        if turn < changes:
            world.tasks ^= {"Pong" if turn < changes / 2 else "Breakout"}
        world.tick(random)
    world.tasks = {"Pong", "Breakout"}
    for _ in range(3):
        world.now_s += 10.0
        world.tick(random)
    return world


def test_ten_thousand_random_histories() -> None:
    """Only the dead are started, in time and in order, and what is given up gets nothing.

    In the end, in peace, everybody runs but those that were given up.
    """
    parked = failures = 0
    for seed in range(10_000):
        world = live_through(rng(seed), ticks=12)
        for record in world.records.values():
            given_up = bool(world.parked & {record.task, record.name})
            assert record.alive != given_up or record.task in world.parked, (seed, record)
        assert world.tick(rng(seed)) == [], seed
        parked += len(world.parked)
        failures += world.failures
    assert failures > 50_000 and parked > 1_000, "the histories were quiet: nothing was tried"


def test_a_history_repeats_itself_exactly() -> None:
    for seed in range(100):
        assert live_through(rng(seed), ticks=12) == live_through(rng(seed), ticks=12)


def test_a_worker_that_always_dies_is_restarted_as_often_as_allowed_and_then_parked() -> None:
    for seed in range(100):
        world, random = World(), rng(seed)
        world.tick(random)
        starts_s: list[float] = []
        while "Pong" not in world.parked:
            world.kill("Pong/learner", fruitful=True)
            world.now_s += 0.05
            if Start("Pong/learner") in world.tick(random):
                starts_s.append(world.now_s)
        assert len(starts_s) == RANDOM.max_restarts
        waits_s = np.diff(starts_s)
        assert (waits_s[1:] > waits_s[:-1]).all()
        assert world.parked == {"Pong"}
        assert all(w.alive for w in world.records.values() if w.task == "Breakout")
