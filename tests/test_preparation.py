"""What is settled before anything starts: where frames lie, what fits, what a load makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster import preparation
from rl_cluster.config import ConfigError, TaskConfig
from rl_cluster.config_file import dump, from_mapping, load, to_mapping
from rl_cluster.control import Control
from rl_cluster.effective import Difference, EffectiveConfig
from rl_cluster.levers import LIVE, apply
from rl_cluster.machine import Machine, detect
from rl_cluster.preparation import StoreRoom, at_load, is_live_change, prepare_added, with_added
from rl_cluster.resident import resident_bytes
from rl_cluster.run_directory import RunDirectory, is_in_use
from rl_cluster.supervision.admission import STORE_MARGIN_BYTES, AdmissionError, admit
from rl_cluster.supervision.load import Load
from rl_cluster.supervision.tiers import LoadState
from rl_cluster.supervision.wishes import Wishes

GIGABYTE = 10**9
CATCH = {"entry": "envs.catch:make", "name": "Catch"}
GAMES = st.integers(1, 3)
VECTORS = {"entry": "envs.classic:make", "name": "CartPole-v1"}


def prepared(
    monkeypatch: pytest.MonkeyPatch,
    gpu_memory_bytes: int,
    tasks: tuple[str, ...] = ("one",),
    env: dict[str, str] | None = None,
    **learner: object,
) -> preparation.PreparedRun:
    machine = Machine(8, 99 * GIGABYTE, 99 * GIGABYTE, ("H200",), gpu_memory_bytes)
    monkeypatch.setattr(preparation, "detect", lambda: machine)
    defaults = {"env": env or CATCH, "learner": {"device": "cuda", **learner}}
    return preparation.prepare(from_mapping({"tasks": list(tasks), "defaults": defaults}))


def row(run: preparation.PreparedRun, task: str = "one") -> Difference | None:
    setting = f"tasks.{task}.learner.resident_share"
    return next((d for d in run.effective.differences if d.setting == setting), None)


def test_a_way_to_wandb_that_there_is_not_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    config = from_mapping({"tasks": ["one"], "telemetry": {"wandb": True}})
    with pytest.raises(ConfigError, match=r"telemetry\.wandb: WANDB_MODE is 'ofline'"):
        preparation.prepare(config)


def test_tensorboard_that_is_not_installed_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = r"telemetry\.tensorboard: .* `pip install -e '\.\[tensorboard\]'`"
    with pytest.raises(ConfigError, match=said):
        preparation.prepare(from_mapping({"tasks": ["one"]}))
    without = {"tasks": ["one"], "telemetry": {"tensorboard": False}, "defaults": {"env": CATCH}}
    assert preparation.prepare(from_mapping(without)).demands


def test_frames_that_fit_into_their_share_lie_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(monkeypatch, 4 * GIGABYTE, resident_share=0.5)
    assert row(run) is None
    task = run.effective.config.tasks["one"]
    assert task.learner.resident_share == 0.5
    assert resident_bytes(task, run.specs["one"]) < 2 * GIGABYTE


def test_frames_that_do_not_fit_stay_on_the_host_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = prepared(monkeypatch, 1 * GIGABYTE, resident_share=0.5)
    found = row(run)
    assert found is not None
    assert (found.requested, found.effective) == (0.5, 0.0)
    assert "more than 0.5 of the 1.00 GB" in found.reason
    assert run.effective.config.tasks["one"].learner.resident_share == 0.0


def test_tasks_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(monkeypatch, 2 * GIGABYTE, ("one", "two"), resident_share=0.8)
    found = row(run, "two")
    assert found is not None
    assert "of the 1.00 GB of GPU memory that are this task's" in found.reason


def test_vectors_are_gathered_where_they_can_be_searched_for_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = row(prepared(monkeypatch, 99 * GIGABYTE, env=VECTORS))
    assert found is not None
    assert "float32 are searched for NaN on the host" in found.reason


@pytest.mark.parametrize("learner", [{"resident_share": 0}, {"device": "cpu"}])
def test_what_asks_for_the_host_is_no_difference(
    monkeypatch: pytest.MonkeyPatch, learner: dict[str, object]
) -> None:
    assert row(prepared(monkeypatch, 1, **learner)) is None


# A tier fitted to the machine


def tiered(
    monkeypatch: pytest.MonkeyPatch, tasks: int, tier: str, memory_bytes: int = 99 * GIGABYTE
) -> preparation.PreparedRun:
    machine = Machine(8, memory_bytes, 99 * GIGABYTE)
    monkeypatch.setattr(preparation, "detect", lambda: machine)
    replay = {"capacity_transitions": 100_000}
    names = [f"game-{i}" for i in range(tasks)]
    raw = {"tasks": names, "defaults": {"env": CATCH, "replay": replay}, "load": {"tier": tier}}
    return preparation.prepare(from_mapping(raw))


def test_a_tier_s_queue_is_admitted_where_not_all_tasks_would_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = 12 * GIGABYTE
    with pytest.raises(AdmissionError):
        tiered(monkeypatch, 10, "custom", few)
    run = tiered(monkeypatch, 10, "light", few)
    assert len(run.demands) == 10 and 2 <= run.most_games < 10
    assert run.admission.host_bytes <= few
    assert all(row.setting != "load: tasks at once" for row in run.effective.differences)


def test_a_larger_tier_can_be_asked_for_live_where_the_machine_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiered(monkeypatch, 4, "light")
    assert run.most_games == 4
    assert run.admission == admit(run.demands, run.machine)
    assert run.store_capacity_bytes > run.admission.object_store_bytes


@given(store_bytes=st.integers(GIGABYTE, 80 * GIGABYTE), taken=st.floats(0.0, 1.0), games=GAMES)
def test_what_is_fitted_to_a_store_of_others_fills_it_only_as_far_as_is_no_pressure(
    store_bytes: int, taken: float, games: int
) -> None:
    """However much of it others have claimed, and filled but for the slack of theirs."""
    store = StoreRoom(int(store_bytes * (1 - taken)), "the store")
    config = from_mapping({
        "tasks": [f"g{n}" for n in range(games)],
        "cluster": {"address": "auto"},
        "load": {"tier": "light"},
        "defaults": {"env": CATCH, "replay": {"capacity_transitions": 3_000_000}},
    })  # fmt: skip
    try:
        run = preparation.prepare(config, store=store)
    except AdmissionError as error:
        assert "the store has" in str(error)
        return
    assert run.store_capacity_bytes <= store.free_bytes
    used_bytes = run.admission.object_store_bytes - STORE_MARGIN_BYTES
    assert used_bytes <= 0.96 * store.free_bytes


def test_a_store_of_others_that_nobody_has_touched_is_no_memory_beside_what_is_available() -> None:
    """It will be taken out of that as it fills; only what is touched has been taken already."""
    touched = psutil.disk_usage("/dev/shm").used
    machine = Machine(8, 20 * GIGABYTE, 20 * GIGABYTE)
    for free in (touched // 2, touched + 10 * GIGABYTE):
        found = preparation._with_store(machine, StoreRoom(free, "the store"))
        assert found.shared_memory_bytes == free
        assert found.memory_bytes - machine.memory_bytes <= min(free, touched + GIGABYTE)
    others = StoreRoom(GIGABYTE, "the store", claimed_bytes=touched + GIGABYTE)
    assert preparation._with_store(machine, others).memory_bytes == machine.memory_bytes


@pytest.mark.parametrize(("given_out", "left"), [(None, 2), (0, 0), (1, 1), (3, 2)])
def test_on_a_cluster_of_others_there_are_as_many_gpus_as_ray_gives_out(
    given_out: int | None, left: int
) -> None:
    machine = Machine(8, 20 * GIGABYTE, 20 * GIGABYTE, gpus=("one", "two"))
    store = StoreRoom(GIGABYTE, "the store", gpus=given_out)
    assert len(preparation._with_store(machine, store).gpus) == left


def test_rollouts_that_go_to_labelled_nodes_are_no_load_of_this_host() -> None:
    def processes(**cluster: object) -> int:
        many = {"env": CATCH, "rollout": {"actors": 6}}
        tree = {"tasks": ["one"], "defaults": many, "cluster": {"address": "auto", **cluster}}
        return preparation.prepare(from_mapping(tree)).demands[0].processes

    assert processes() - processes(rollout_labels={"pool": "cpu"}) == 6


def test_a_tier_too_big_for_the_machine_keeps_less_replay_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiered(monkeypatch, 8, "heavy", 16 * GIGABYTE)
    assert run.most_games == 8
    assert run.admission.host_bytes <= 16 * GIGABYTE
    for demand in run.demands:
        kept = run.effective.config.tasks[demand.name].replay.capacity_transitions
        assert demand.blocks * 32 == kept < 100_000
        (found,) = [
            row
            for row in run.effective.differences
            if row.setting == f"tasks.{demand.name}.replay.capacity_transitions"
        ]
        assert (found.requested, found.effective) == (100_000, kept)
        assert "8 tasks at once share the memory" in found.reason


def test_a_machine_with_room_for_few_runs_few_at_once_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiered(monkeypatch, 8, "heavy", 7 * GIGABYTE)
    (found,) = [d for d in run.effective.differences if d.setting == "load: tasks at once"]
    assert (found.requested, found.effective) == (8, run.most_games)
    assert 1 <= run.most_games < 8 and run.admission.host_bytes <= 7 * GIGABYTE


# A task under a load


def own_task(**rollout: int) -> TaskConfig:
    raw = {"tasks": {"one": {"env": CATCH, "rollout": rollout, "learner": {"batch": 64}}}}
    return from_mapping(raw).tasks["one"]


powers = st.integers(0, 9).map(lambda n: 2**n)


@given(st.integers(1, 4), powers, powers, powers, powers)
def test_a_tier_replaces_environments_and_batch_and_nothing_else(
    actors: int, environments: int, share: int, wanted: int, batch: int
) -> None:
    task = own_task(
        actors=actors,
        environments=environments,
        inference_batch=max(1, environments // share),
    )
    found = at_load(task, LoadState("light", Load(2, wanted, batch)))
    rollout = found.rollout
    assert found.learner.batch == batch
    assert (
        rollout.environments * actors == wanted
        or rollout.environments == wanted // actors
        or (rollout.environments == 1 and wanted < actors)
    )
    assert 1 <= rollout.inference_batch <= rollout.environments
    same = replace(rollout, environments=environments, inference_batch=task.rollout.inference_batch)
    assert replace(found, rollout=same, learner=task.learner) == task


@given(powers, powers)
def test_custom_only_bounds_what_a_task_configures(environments: int, batch: int) -> None:
    task = own_task(actors=2, environments=16, inference_batch=8)
    found = at_load(task, LoadState("custom", Load(2, environments, batch)))
    assert found.learner.batch == min(batch, 64)
    assert found.rollout.environments == max(1, min(environments, 32) // 2)
    assert at_load(task, LoadState("custom", Load(1, 32, 64))) == task


def test_half_of_the_environments_go_on_stepping_at_every_load() -> None:
    task = own_task(environments=16, inference_batch=8)
    for wanted in (2, 32, 256):
        found = at_load(task, LoadState("mine", Load(1, wanted, 64))).rollout
        assert (found.environments, found.inference_batch) == (wanted, wanted // 2)


def test_to_shed_optional_work_makes_no_task_anew() -> None:
    """Under pressure, of all times, its workers should not be started again."""
    task = own_task()
    state = LoadState("custom", Load(1, 16, 64))
    assert is_live_change(at_load(task, state), at_load(task, replace(state, shed=True)))


@given(st.sets(st.sampled_from(sorted(LIVE))))
def test_live_settings_are_taken_live_however_many_change(names: set[str]) -> None:
    old = new = own_task()
    for name in names:
        group, _, setting = name.partition(".")
        value = getattr(getattr(old, group), setting)
        new = apply(new, name, value / 2 if isinstance(value, float) else value + 1)
    assert is_live_change(old, new)
    assert is_live_change(new, old)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: replace(t, rollout=replace(t.rollout, environments=32)),
        lambda t: replace(t, agent=replace(t.agent, n_step=1)),
        lambda t: replace(t, learner=replace(t.learner, batch=32, micro_batch=16)),
        lambda t: replace(t, env=replace(t.env, name="Other")),
        lambda t: replace(t, priority=1),
    ],
)
def test_any_other_setting_needs_the_task_made_anew(
    change: Callable[[TaskConfig], TaskConfig],
) -> None:
    assert not is_live_change(own_task(), change(own_task()))


# A task that comes while the run is live


def on(device: str, task: TaskConfig) -> TaskConfig:
    """A task that learns there."""
    return replace(task, learner=replace(task.learner, device=device))


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """The directory of a run with one task."""
    raw = {
        "tasks": {"first": {"env": CATCH, "learner": {"batch": 16}}},
        "seed": 5,
        "load": {"tiers": {"mine": {"games": 1, "environments": 2, "batch": 3}}},
    }
    config = from_mapping(raw)
    effective = EffectiveConfig(from_mapping(raw, ["tasks.first.learner.device=cpu"]), ())
    RunDirectory(tmp_path).write_configuration(config, effective)
    return tmp_path


def test_an_added_task_begins_from_the_first_one_s_settings(live: Path) -> None:
    settings: dict[str, Any] = {"env": {"name": "Catch"}, "learner": {"learning_rate": 0.5}}
    added = prepare_added(live, "second", settings)
    assert added.config.env.entry == "envs.catch:make"
    assert (added.config.learner.batch, added.config.learner.learning_rate) == (16, 0.5)
    assert added.spec.obs_shape == (84, 84)
    assert added.tracker_id != prepare_added(live, "second", settings).tracker_id


def test_an_added_task_is_another_game_of_the_same_kind(live: Path) -> None:
    """Its own name is the game's, as in a configuration, and not the first game's."""
    assert prepare_added(live, "Catch", {}).config.env.name == "Catch"
    other = prepare_added(live, "balance", {"env": VECTORS})
    assert other.spec.obs_shape == (4,)


def test_an_added_task_learns_where_the_run_does_though_who_asks_sees_a_gpu(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = replace(detect(), gpus=("one",), gpu_memory_bytes=80 * GIGABYTE)
    monkeypatch.setattr(preparation, "detect", lambda: seen)
    added = prepare_added(live, "second", {"env": {"name": "Catch"}})
    assert added.config.learner.device == "cpu"


def test_what_was_added_is_part_of_the_run_when_it_is_resumed(live: Path) -> None:
    added = prepare_added(live, "second", {"env": {"name": "Catch"}})
    config = preparation.load_config(live / "config.yaml")
    found = with_added(config, {"second": added.settings})
    assert added.settings["learner"]["device"] == "auto", "on another machine another one"
    assert added.config.learner.device == "cpu", "as of the task that runs"
    assert found.tasks == {**config.tasks, "second": on("auto", added.config)}
    assert replace(found, tasks=config.tasks) == config
    assert with_added(config, {}) == config


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("a/b", {"env": {"name": "Catch"}}, "cannot name"),
        ("second", {"learner": {"bach": 3}}, "did you mean 'batch'"),
        ("second", {"learner": {"batch": 0}}, "learner.batch is 0"),
        ("second", {"env": {"entry": "envs.nothing:make"}}, "envs.nothing"),
    ],
)
def test_a_task_that_cannot_be_is_refused_and_nothing_is_written(
    live: Path, task: str, settings: dict[str, Any], said: str
) -> None:
    before = {path: path.read_bytes() for path in live.iterdir()}
    with pytest.raises(ConfigError, match=said):
        prepare_added(live, task, settings)
    assert {path: path.read_bytes() for path in live.iterdir()} == before


def test_what_is_free_now_and_promised_to_the_run_s_replay_is_not_free_for_one_more(
    live: Path,
) -> None:
    prepare_added(live, "second", {"env": CATCH})
    Control(live).write("session", {"object_store_bytes": detect().memory_bytes})
    keeper = RunDirectory(live)
    keeper.take_lock()
    with pytest.raises(AdmissionError, match="second: "):
        prepare_added(live, "second", {"env": CATCH})
    keeper.release()


@pytest.mark.parametrize("tier", ["light", "custom"])
def test_a_game_that_joins_on_a_cluster_of_others_gets_a_game_s_share_of_what_the_run_claimed(
    live: Path, tier: str
) -> None:
    """Under a tier it takes turns; without, it brings its own, which the supervisor claims."""
    tree = to_mapping(load(live / "config.yaml"))
    tree["cluster"]["address"], tree["load"]["tier"] = "auto", tier
    tree["tasks"]["first"]["replay"]["capacity_transitions"] = 200_000
    (live / "config.yaml").write_text(dump(from_mapping(tree)), encoding="utf-8")
    Control(live).write("session", {"object_store_bytes": GIGABYTE})
    keeper = RunDirectory(live)
    keeper.take_lock()
    added = prepare_added(live, "second", {"env": CATCH})
    keeper.release()
    kept = added.config.replay.capacity_transitions
    assert (kept < 200_000) is (tier == "light")
    assert (added.store_bytes <= GIGABYTE) is (tier == "light")


def test_the_doctor_says_how_large_a_store_could_be_of_a_run_on_a_cluster_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparation, "detect", lambda: Machine(8, 9 * GIGABYTE, 9 * GIGABYTE))
    tree = {"tasks": ["one"], "defaults": {"env": CATCH}, "load": {"tier": "light"}}
    there = from_mapping(tree | {"cluster": {"address": "auto"}})
    assert preparation.what_would_run(there) == preparation.what_would_run(from_mapping(tree))


def test_a_run_whose_added_tasks_no_longer_fit_is_refused_with_the_numbers_on_resume(
    live: Path,
) -> None:
    config = live / "config.yaml"
    plain = prepare_added(live, "second", {"env": CATCH}).settings
    plain["replay"]["capacity_transitions"] = 10**10
    wishes = Wishes("custom", added={"second": plain})
    Control(live).write("wishes", wishes.to_record())
    command = [sys.executable, "-m", "rl_cluster.cli", "train", config, "--run", live, "--resume"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr, answer.stderr
    assert "second: " in answer.stderr and "blocks" in answer.stderr
    assert not is_in_use(live)


def test_a_task_that_does_not_fit_the_machine_is_refused_with_the_numbers(live: Path) -> None:
    with pytest.raises(AdmissionError, match=r"second: .* blocks"):
        prepare_added(live, "second", {"env": CATCH, "replay": {"capacity_transitions": 10**10}})
