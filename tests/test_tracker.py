"""What Weights & Biases is told of a run's files, read back from what it wrote offline."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from telemetry_samples import save_film
from wandb_files import found, history, sessions

from rl_cluster.checkpoint import Checkpoint, CheckpointStore
from rl_cluster.cluster.telemetry_hub import TelemetryHub
from rl_cluster.cluster.tracker_guard import TrackerGuard
from rl_cluster.config import RunConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.control import Control, ProcessId
from rl_cluster.effective import EffectiveConfig
from rl_cluster.run_directory import RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry import tracker as tracker_module
from rl_cluster.telemetry.incidents import Incident, IncidentLog, read_incidents
from rl_cluster.telemetry.tracker import Tracker
from rl_cluster.telemetry.tracker_process import wandb_environment
from rl_cluster.telemetry.wandb_runs import check_available, wandb_mode
from rl_cluster.telemetry.writers import open_writer

IDS = {"Pong": "pong-id", "Breakout": "breakout-id"}


@pytest.fixture(autouse=True)
def no_wandb_but_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two games that asks for all of it."""
    return make_run(tmp_path / "two-games", "Pong", "Breakout")


def make_run(run_dir: Path, *games: str) -> Path:
    control = Control(run_dir)
    directory = RunDirectory(run_dir)
    config = configuration(*games)
    directory.write_configuration(config, EffectiveConfig(config, ()))
    control.write("trackers", {game: IDS[game] for game in games})
    return run_dir


def add(run_dir: Path, game: str, *others: str) -> None:
    """What a run's files say once a game was added live."""
    RunDirectory(run_dir).write_configuration(
        configuration(*others), EffectiveConfig(configuration(*others, game), ())
    )
    Control(run_dir).write("trackers", {each: IDS[each] for each in (*others, game)})


def configuration(*games: str) -> RunConfig:
    telemetry = {"wandb": True, "wandb_checkpoints": True, "tensorboard": False}
    return from_mapping({"tasks": list(games), "seed": 7, "telemetry": telemetry})


def write_rows(run_dir: Path, *frames: int) -> None:
    writer = open_writer(run_dir)
    for count in frames:
        writer.write(1_000.0, 5.0, None, None, {"incidents": 2})
        for game in Control(run_dir).read("trackers") or {}:
            writer.write(1_000.0, 5.0, game, 100, {"env_frames": count, "loss": 0.5})
    writer.close()


def say(run_dir: Path, task: str | None, kind: str) -> None:
    log = IncidentLog(run_dir)
    log.append(Incident(1_000.0, task, "learner", kind, "it died", "restart"))
    log.close()


def save_best(run_dir: Path, step: int) -> Path:
    store = CheckpointStore(run_dir / "Pong" / "checkpoints", keep=2)
    tensors = {"w": torch.zeros(2)}
    return store.save(Checkpoint(step, tensors, tensors, {}), best=True)


def follow(run_dir: Path, looks: int = 1) -> None:
    """One session of a tracker."""
    tracker = Tracker(run_dir)
    for _ in range(looks):
        tracker.look()
    tracker.close()
    closed_s = int(time.time())
    while int(time.time()) == closed_s:  # W&B names a session's directory by the second
        time.sleep(0.02)


def test_each_task_is_a_run_of_the_group_with_its_rows_films_alerts_and_best_checkpoint(
    run_dir: Path,
) -> None:
    write_rows(run_dir, 400, 800)
    say(run_dir, "Pong", "task_parked")
    say(run_dir, None, "load_changed")
    save_film(run_dir / "Pong" / "videos" / "best.gif")
    best = save_best(run_dir, 30)
    follow(run_dir, looks=2)
    ((pong,), (breakout,)) = (sessions(run_dir, run_id) for run_id in IDS.values())

    (run,) = found(pong, "run")
    assert (run.run_id, run.run_group, run.project) == ("pong-id", "two-games", "rl-cluster")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 7 and set(config["tasks"]) == set(IDS)
    rows = history(pong)
    assert [row["_step"] for row in rows] == [400, 800] == [r["_step"] for r in history(breakout)]
    assert {row["learning/loss"] for row in rows} == {0.5}
    assert (rows[0]["health/incidents"], rows[0]["health/wall_s"]) == (2, 5)
    shown = pong.parent / "files" / rows[0]["videos/best.path"]
    assert shown.read_bytes() == (run_dir / "Pong" / "videos" / "best.gif").read_bytes()
    assert "videos/best.path" not in {*rows[1], *history(breakout)[0]}
    alerts = [(alert.title, alert.level) for alert in found(pong, "alert")]
    assert alerts == [("task_parked", "ERROR"), ("load_changed", "INFO")]
    assert found(pong, "alert")[0].text == "Pong learner: it died. restart."
    (artifact,) = found(pong, "artifact")
    assert (artifact.name, artifact.type) == ("two-games-Pong", "model")
    assert {"best", best.name} <= {*artifact.aliases}
    sent = {entry.path for entry in artifact.manifest.contents}
    assert sent == {path.name for path in best.iterdir()}


def test_a_resumed_run_goes_on_under_the_same_id_and_tells_nothing_twice(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    save_film(run_dir / "Pong" / "videos" / "newest.gif")
    for frames in (400, 800):
        write_rows(run_dir, frames)
        say(run_dir, "Pong", "worker_failed")
        save_best(run_dir, frames)
        follow(run_dir)
    first, second = sessions(run_dir, "pong-id")
    assert [found(path, "run")[0].run_id for path in (first, second)] == ["pong-id"] * 2
    assert [row["_step"] for row in history(first)] == [400]
    assert [row["_step"] for row in history(second)] == [800]
    assert (
        "videos/newest.path" in history(first)[0] and "videos/newest.path" not in history(second)[0]
    )
    assert [len(found(path, "alert")) for path in (first, second)] == [1, 1]
    assert [len(found(path, "artifact")) for path in (first, second)] == [1, 1]


def test_a_game_that_was_added_live_stands_in_the_configuration_that_wandb_has(
    tmp_path: Path,
) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    add(run_dir, "Breakout", "Pong")
    follow(run_dir)
    (path,) = sessions(run_dir, "breakout-id")
    (run,) = found(path, "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert set(config["tasks"]) == set(IDS)


def test_rows_behind_the_newest_step_are_left_out(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    write_rows(run_dir, 400, 200, 600)
    follow(run_dir)
    (path,) = sessions(run_dir, "pong-id")
    assert [row["_step"] for row in history(path)] == [400, 600]


def test_while_wandb_cannot_be_reached_it_says_so_once_and_keeps_what_it_has_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    write_rows(run_dir, 400)
    with monkeypatch.context() as away:
        away.setenv("WANDB_MODE", "online")
        away.setenv("WANDB_API_KEY", "x" * 40)
        away.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        away.setenv("WANDB_INIT_TIMEOUT", "2")
        follow(run_dir, looks=3)
    said = Control(run_dir).read("tracker_said")
    assert said is not None and said["kind"] == "tracker_unreachable"
    assert "W&B run 'pong-id' of task 'Pong' cannot be opened" in said["cause"]
    assert Control(run_dir).read("tracker_told") is None
    follow(run_dir)
    assert [row["_step"] for path in sessions(run_dir, "pong-id") for row in history(path)] == [400]


def test_what_wandb_could_never_be_told_is_left_for_its_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setattr(tracker_module, "_MOST_BYTES", 500)  # more than one look can take
    write_rows(run_dir, 400)
    tracker, stop = Tracker(run_dir), StopFlag()
    tracker.look()
    frames = range(800, 8_400, 400)
    write_rows(run_dir, *frames)
    stop.came = signal.SIGTERM
    tracker.follow(stop)
    (path,) = sessions(run_dir, "pong-id")
    assert [row["_step"] for row in history(path)] == [400, *frames]
    assert os.environ["WANDB_MODE"] == "online"


def test_a_tracker_whose_wandb_process_died_ends_and_its_heir_tells_on(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    control, hub = Control(run_dir), TelemetryHub("one", run_dir, configuration("Pong"))
    guard = TrackerGuard(run_dir, control, hub, wanted=True)
    control.beat("supervisor")
    write_rows(run_dir, 400)
    guard.look({"Pong": "pong-id"}, 0.0)
    first = started(control)
    known = ProcessId.of(first.pid)
    for core in wandb_processes(first):
        core.kill()
    deadline_s, frames = time.monotonic() + 60, 800
    while known.alive:
        assert time.monotonic() < deadline_s, "it goes on without W&B's process"
        control.beat("supervisor")
        frames += 400
        write_rows(run_dir, frames)
        time.sleep(0.5)
    assert "ConnectionResetError" in (run_dir / "tracker.log").read_text()
    write_rows(run_dir, frames + 400)
    guard.look({"Pong": "pong-id"}, 200.0)
    started(control, first.pid)
    guard.finish(hurried=False)
    hub.close()
    assert [i.kind for i in read_incidents(run_dir)] == ["worker_failed"]
    assert history(sessions(run_dir, "pong-id")[-1])[-1]["_step"] == frames + 400


def wandb_processes(tracker: psutil.Process) -> list[psutil.Process]:
    """W&B's own, once the tracker has opened a run."""
    found = [child for child in tracker.children(recursive=True) if "wandb" in child.name()]
    assert found
    return found


def test_the_supervisor_starts_a_tracker_replaces_a_dead_one_and_passes_on_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "one", "Pong")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Control(run_dir).write("session", {"wandb": wandb_environment()})
    monkeypatch.setenv("WANDB_MODE", "disabled")  # of a cluster of others, say
    control, hub = Control(run_dir), TelemetryHub("one", run_dir, configuration("Pong"))
    guard = TrackerGuard(run_dir, control, hub, wanted=True)
    control.beat("supervisor")
    write_rows(run_dir, 400)
    guard.look({"Pong": "pong-id"}, 0.0)
    first = started(control)
    guard.look({"Pong": "pong-id"}, 10.0)
    assert not read_incidents(run_dir)
    control.write("tracker_said", {"kind": "k", "cause": "c", "action": "a"})
    first.kill()
    write_rows(run_dir, 800)
    first.wait(10)
    guard.look({"Pong": "pong-id"}, 200.0)
    second = ProcessId.of(started(control, first.pid).pid)
    guard.finish(hurried=False)
    assert not second.alive
    hub.close()
    incidents = [(i.worker, i.kind) for i in read_incidents(run_dir)]
    assert incidents == [("tracker", "k"), ("tracker", "worker_failed")]
    assert [row["_step"] for row in history(sessions(run_dir, "pong-id")[-1])] == [800]


def started(control: Control, other_than: int = 0) -> psutil.Process:
    """The tracker, once it has looked."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        process = control.signed("tracker")
        if process and process.alive and process.pid != other_than and control.read("tracker_told"):
            return psutil.Process(process.pid)
        time.sleep(0.1)
    raise AssertionError("no tracker after 60 s")


def test_wandb_is_offline_without_a_login_and_as_its_variable_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match=r"'ofline'.*online, offline or disabled"):
        check_available()


def test_a_missing_package_is_an_error_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[wandb\]'"):
        check_available()
