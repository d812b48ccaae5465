"""Run directories with evaluations, as comparisons are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from telemetry_samples import run_summary, task_summary

from rl_cluster.config import RunConfig
from rl_cluster.config_file import dump, from_mapping
from rl_cluster.evaluation import Evaluation, append_evaluation
from rl_cluster.scores import human_normalized
from rl_cluster.telemetry.summary import write_summary


def configured(*tasks: str, seed: int = 1, learning_rate: float = 1e-3) -> RunConfig:
    """A configuration of some tasks."""
    return from_mapping(
        {
            "tasks": list(tasks),
            "seed": seed,
            "max_env_steps": 1000,
            "defaults": {"learner": {"learning_rate": learning_rate}},
        }
    )


def evaluation(task: str, env_steps: int, mean_return: float) -> Evaluation:
    """Ten games with the same return."""
    return Evaluation(
        time=1.8e9 + env_steps,
        wall_s=env_steps / 100,
        env_steps=env_steps,
        env_frames=4 * env_steps,
        learner_updates=env_steps // 8,
        policy_version=env_steps // 80,
        episodes=10,
        mean_return=mean_return,
        std_return=0.0,
        returns=[mean_return] * 10,
        lengths=[100] * 10,
        random_mean_return=-20.7,
        random_std_return=0.5,
        human_normalized=human_normalized(task, mean_return),
        seeds=list(range(10)),
        epsilon=0.0,
    )


def write_run(
    run_dir: Path,
    config: RunConfig,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    state: str = "completed",
    failures: Mapping[str, str] | None = None,
) -> Path:
    """A run directory.

    Args:
      curves: task to (env_steps, mean return) of each of its evaluations.
      state: of the run, and of the tasks that did not fail.
      failures: task to why it is parked.
    """
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump(config))
    for task, points in curves.items():
        for point in points:
            append_evaluation(run_dir / task / "evaluations.jsonl", evaluation(task, *point))
    tasks = {task: task_summary(state=state) for task in config.tasks}
    for task, failure in (failures or {}).items():
        tasks[task] = task_summary(state="failed", failure=failure)
    write_summary(run_dir, run_summary(state=state, tasks=tasks))
    return run_dir


def write_group(
    parent: Path, learning_rate: float, finals: Sequence[float], task: str = "Pong"
) -> list[Path]:
    """Runs that differ in nothing but their seed, each straight from -20 to its final return."""
    return [
        write_run(
            parent / f"{learning_rate:g}-{seed}",
            configured(task, seed=seed, learning_rate=learning_rate),
            {task: [(0, -20.0), (500 + 10 * seed, (final - 20) / 2), (1000, final)]},
        )
        for seed, final in enumerate(finals)
    ]
