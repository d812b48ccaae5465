"""The main job: two Atari games at once, with workers killed under way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psutil
import pytest
from live_run import EXPERIMENTS, LiveRun, command, lines

from rl_cluster.config_file import load
from rl_cluster.preparation import prepare
from rl_cluster.telemetry.summary import check_valid

pytestmark = pytest.mark.timeout(600)

GAMES = ("Pong", "Breakout")
CONFIG = EXPERIMENTS / "atari_quickstart.yaml"
_FILM = "videos/best.gif"
SETTINGS = (
    "max_seconds=null",
    "telemetry.period_s=2",
    "defaults.replay.capacity_transitions=2000",
    "defaults.replay.min_transitions=500",
    "defaults.evaluation.games=1",
    "defaults.evaluation.period_s=10",
    "defaults.evaluation.epsilon=0.05",
    "defaults.checkpoint.period_s=5",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = tmp_path_factory.mktemp("two") / "games"
    with LiveRun(CONFIG, run_dir, *SETTINGS) as live:
        live.wait_for(lambda s: _all(s, lambda t: t["replay"]["fill"] == 1), 120)
        live.ports = _listening(live)
        _kill_and_wait(live, "RolloutActor")
        _kill_and_wait(live, "LearnerActor")
        live.processes("WeightsActor")[0].kill()
        live.wait_for(lambda s: _all(s, lambda t: t["evaluation"] and t["best"]), 240)
        live.wait_for(lambda _: all((run_dir / game / _FILM).exists() for game in GAMES), 60)
        live.wait_for(lambda s: _all(s, _is_near_its_ratio), 120)  # kills left it behind
        live.code = live.interrupt()
        live.check_nothing_left()
        yield live


def _all(summary: dict[str, Any], condition: Any) -> bool:
    return all(condition(task) for task in summary["tasks"].values())


def _is_near_its_ratio(task: dict[str, Any]) -> bool:
    ratio = task["samples_per_insert"]
    return abs(ratio["actual"] - ratio["wanted"]) < 0.04 * ratio["wanted"]


def _kill_and_wait(live: LiveRun, worker: str) -> None:
    """Kill one worker with SIGKILL and wait until every task moves on with a replacement."""
    before = live.summary()
    live.processes(worker)[0].kill()
    live.wait_for(
        lambda s: (
            s["incidents"] > before["incidents"]
            and _restarts(s) > _restarts(before)
            and all(
                s["tasks"][game]["env_steps"] > before["tasks"][game]["env_steps"] + 300
                for game in GAMES
            )
        ),
        45,
    )


def _restarts(summary: dict[str, Any]) -> int:
    return sum(task["restarts"] for task in summary["tasks"].values())


def _listening(live: LiveRun) -> list[str]:
    connections = psutil.net_connections("inet")
    pids = {process.pid for process in live.processes()}
    return [c.laddr.ip for c in connections if c.status == "LISTEN" and c.pid in pids]


def test_it_ends_well_with_a_valid_summary_and_both_games_progressed(run: Any) -> None:
    assert run.code == 130, run.log()
    summary = run.summary()
    check_valid(summary)
    assert summary["state"] == "interrupted"
    for task in summary["tasks"].values():
        assert task["env_steps"] > 1_000 and task["learner_updates"] > 20
        assert task["env_frames"] == 4 * task["env_steps"]
        assert task["policy_version"] > 0 and task["skipped_batches"] == 0


def test_samples_per_insert_is_within_five_per_cent_of_what_was_asked(run: Any) -> None:
    for task in run.summary()["tasks"].values():
        ratio = task["samples_per_insert"]
        assert ratio["actual"] == pytest.approx(ratio["wanted"], rel=0.05)


def test_the_object_store_does_not_grow_once_replay_is_full(run: Any) -> None:
    rows = lines(run.run_dir / "metrics.jsonl")
    full_at = max(
        next(r["time"] for r in rows if r["task"] == game and r["replay_fill"] == 1)
        for game in GAMES
    )
    used = [r["object_store_bytes"] for r in rows if r["task"] is None and r["time"] > full_at]
    assert len(used) > 10
    demands = prepare(load(CONFIG, SETTINGS)).demands
    assert max(used) <= sum(demand.store_bytes for demand in demands), "more than was admitted"
    half = len(used) // 2
    growth = np.median(used[half:]) - np.median(used[:half])
    assert growth < demands[0].weights_bytes + 10 * demands[0].block_bytes, used


def test_killed_workers_are_incidents_and_nothing_collected_was_lost(run: Any) -> None:
    incidents = lines(run.run_dir / "incidents.jsonl")
    failed = {i["worker"].split(":")[0] for i in incidents if i["kind"] == "worker_failed"}
    assert {"rollout", "learner"} <= failed
    rows = [r for r in lines(run.run_dir / "metrics.jsonl") if r["task"]]
    for game in GAMES:
        of_game = [r for r in rows if r["task"] == game]
        steps = [r["env_steps"] for r in of_game]
        assert steps == sorted(steps)
        filled = [r["replay_fill"] for r in of_game]
        assert all(fill == 1 for fill in filled[filled.index(1) :])


def test_policy_versions_only_grow_through_a_learner_s_death(run: Any) -> None:
    rows = [r for r in lines(run.run_dir / "metrics.jsonl") if r["task"]]
    for game in GAMES:
        versions = [r["policy_version"] for r in rows if r["task"] == game]
        assert versions == sorted(versions)


def test_games_were_evaluated_beside_the_random_policy(run: Any) -> None:
    for game, task in run.summary()["tasks"].items():
        evaluation = task["evaluation"]
        assert evaluation["random_mean_return"] is not None, game
        assert evaluation["human_normalized"] is not None
        assert task["best"]["mean_return"] >= evaluation["mean_return"]
        best = (run.run_dir / game / "checkpoints" / "best").read_text().strip()
        assert (run.run_dir / game / "checkpoints" / best / "manifest.json").exists()
        assert (run.run_dir / game / _FILM).exists()


def test_nothing_listened_beyond_loopback(run: Any) -> None:
    assert run.ports and all(ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1") for ip in run.ports)


def test_the_directory_holds_what_design_promises(run: Any) -> None:
    for name in ("config.yaml", "effective.yaml", "summary.json", "metrics.jsonl"):
        assert (run.run_dir / name).stat().st_size > 0, name
    assert list((run.run_dir / "tensorboard").rglob("events.out.tfevents.*"))
    assert "tasks.Pong.learner.threads" in (run.run_dir / "effective.yaml").read_text()


def test_status_and_report_read_the_finished_run(run: Any) -> None:
    status = command("status", run.run_dir, "--json")
    assert status.returncode == 0 and json.loads(status.stdout) == run.summary()
    report = command("report", run.run_dir)
    assert report.returncode == 0 and report.stdout.strip().endswith("report.html")


def test_its_checkpoints_can_be_evaluated(run: Any) -> None:
    result = command("evaluate", run.run_dir, "--episodes", 1, "--json")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads(result.stdout)["Pong"]
    assert evaluation["episodes"] == 1 and -21 <= evaluation["mean_return"] <= 21


def test_a_directory_that_is_a_run_is_not_overwritten(run: Any) -> None:
    again = command("train", CONFIG, "--run", run.run_dir)
    assert again.returncode == 2 and "--resume" in again.stderr
