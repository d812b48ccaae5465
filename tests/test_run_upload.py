"""Checkpoints of a live run are copied elsewhere, whole, and can be brought back."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_run import EXPERIMENTS, LiveRun, command, lines

from rl_cluster.checkpoint import CheckpointStore

CATCH = EXPERIMENTS / "catch.yaml"


@pytest.mark.long
def test_a_run_is_trained_on_from_a_checkpoint_that_was_uploaded(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    settings = (
        f"defaults.checkpoint.upload=file://{remote}",
        "defaults.checkpoint.period_s=2",
        "defaults.evaluation.period_s=4",
        "telemetry.period_s=1",
        "max_seconds=600",
    )
    with LiveRun(CATCH, tmp_path / "run", *settings) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["best"] is not None, 90)
        run.wait_for(lambda _: _uploaded(run.run_dir) > 0, 30)
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
    other = tmp_path / "other"
    fetched = command("fetch", f"file://{remote}/run/Catch", other, "Catch")
    assert fetched.returncode == 0, fetched.stderr
    brought = CheckpointStore(other / "Catch" / "checkpoints", keep=1).load_latest()
    assert brought is not None and brought.checkpoint.step > 0
    assert command("fetch", f"file://{remote}/run/Catch", other, "Catch", "--best").returncode == 0
    step = brought.checkpoint.step
    with LiveRun(CATCH, other, *settings) as run:
        run.wait_for(lambda s: s["tasks"]["Catch"]["learner_updates"] > step + 20, 90)
        assert run.interrupt() == 130, run.log()
    missing = command("fetch", f"file://{remote}/run/Pong", other, "Pong")
    assert missing.returncode == 1 and "holds no whole checkpoint" in missing.stderr


def _uploaded(run_dir: Path) -> float:
    rows = [row for row in lines(run_dir / "metrics.jsonl") if row["task"] == "Catch"]
    return max((row.get("uploaded_updates") or 0 for row in rows), default=0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://bucket", "protocol"),
        ("s3://user:secret@bucket/x", "environment variables"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, url: str, said: str
) -> None:
    refused = command(
        "train", CATCH, "--run", tmp_path / "run", "--set", f"defaults.checkpoint.upload={url}"
    )
    assert refused.returncode == 2
    assert "tasks.Catch.checkpoint.upload" in refused.stderr and said in refused.stderr
    assert "secret" not in refused.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
