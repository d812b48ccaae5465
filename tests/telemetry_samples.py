"""A run's figures, as the tests of the telemetry use them."""

from pathlib import Path
from typing import Any

import numpy as np

from rl_cluster.telemetry.summary import Summary, TaskSummary
from rl_cluster.video import VideoRecorder

NOW_S = 1_800_000_000.0


def task_summary(**changes: Any) -> TaskSummary:
    task = TaskSummary(
        state="running",
        failure=None,
        env_steps=310_000,
        env_frames=1_240_000,
        env_frames_per_s=5_321.3,
        learner_updates=38_750,
        learner_samples_per_s=10_642.0,
        learner_wait_share=0.1,
        rollout_wait_share=0.4,
        samples_per_insert={"wanted": 8.0, "actual": 7.98},
        policy_version=775,
        policy_lag={"p50": 1.0, "p95": 3.0},
        replay={"transitions": 86_000, "bytes": 611_000_000, "capacity": 100_000, "fill": 0.86},
        loss=0.01234,
        returns={"last": [-20.0, -19.0, -21.0, -18.0], "mean": -19.5, "episodes": 44},
        evaluation={
            "episodes": 10,
            "mean_return": -17.2,
            "std_return": 1.0,
            "random_mean_return": -20.7,
            "human_normalized": 0.099,
            "policy_version": 700,
            "env_steps": 280_000,
        },
        best={"mean_return": -16.9, "step": 270_000},
        restarts=0,
        skipped_batches=0,
    )
    return {**task, **changes}  # type: ignore[typeddict-item]


def fresh_task_summary(**changes: Any) -> TaskSummary:
    """A task that has collected nothing yet."""
    return task_summary(
        **{
            "state": "warming_up",
            "samples_per_insert": {"wanted": 8.0, "actual": None},
            "policy_lag": {"p50": None, "p95": None},
            "replay": {"transitions": 0, "bytes": 0, "capacity": 100_000, "fill": 0.0},
            "loss": None,
            "returns": {"last": [], "mean": None, "episodes": 0},
            "evaluation": None,
            "best": None,
            **changes,
        }
    )


def run_summary(**changes: Any) -> Summary:
    summary = Summary(
        run="quickstart",
        state="running",
        updated_at=NOW_S,
        wall_s=131.4,
        max_seconds=180.0,
        tier={"requested": "auto", "effective": "medium"},
        incidents=1,
        object_store_bytes=1_230_000_000,
        tasks={"Pong": task_summary(), "MontezumaRevenge": fresh_task_summary()},
    )
    return {**summary, **changes}  # type: ignore[typeddict-item]


def save_film(path: Path, brightness: int = 0) -> Path:
    """A film of two frames; 168 pixels high and wide."""
    recorder = VideoRecorder()
    for shade in (brightness, brightness, 200):
        recorder.add(np.full((84, 84), shade, np.uint8))
    return recorder.save(path)
