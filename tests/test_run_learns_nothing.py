"""A learner that can only skip batches is parked with its reason; the other game goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from live_run import EXPERIMENTS, LiveRun, lines

from rl_cluster.checkpoint import CheckpointStore

SETTINGS = (
    "tasks.Good.env.name=Catch",
    "tasks.Bad.env.name=Catch",
    "tasks.Bad.learner.learning_rate=1.0e+30",  # after one update no loss is finite any more
    "tasks.Bad.learner.max_skipped_batches=50",
    "supervisor.max_fruitless_restarts=1",
    "supervisor.max_restarts=100",
    "supervisor.backoff_s=0.5",
    "max_seconds=600",
)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_diverged_game_is_parked_while_the_other_trains(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    text = (EXPERIMENTS / "catch.yaml").read_text().replace("[Catch]", "{Good: {}, Bad: {}}")
    config.write_text(text)
    with LiveRun(config, tmp_path / "run", *SETTINGS) as run:
        summary = run.wait_for(lambda s: s["tasks"]["Bad"]["state"] == "failed", 200)
        reason = summary["tasks"]["Bad"]["failure"]
        assert "without any progress" in reason, "its loop moved, and yet it got nowhere"
        assert "the last 50 batches were skipped (learner.max_skipped_batches)" in reason
        assert "training has diverged" in reason and "rollout:Bad" in reason
        before = summary["tasks"]["Good"]["learner_updates"]
        later = run.wait_for(lambda s: s["tasks"]["Good"]["learner_updates"] > before + 50, 60)
        assert later["tasks"]["Good"]["restarts"] == 0
        kinds = [i["kind"] for i in lines(run.run_dir / "incidents.jsonl") if i["task"] == "Bad"]
        assert kinds.count("worker_failed") == 2 and kinds.count("task_parked") == 1
        assert "worker_failed" not in kinds[kinds.index("task_parked") :], "nobody tries again"
        assert run.interrupt() == 130
        run.check_nothing_left()
    loaded = CheckpointStore(run.run_dir / "Bad" / "checkpoints", keep=1).load_latest()
    assert loaded is not None and not loaded.refused
    assert all(torch.isfinite(tensor).all() for tensor in loaded.checkpoint.model.values())
