"""Evaluation of what lies on disk: a run's best checkpoints, or one checkpoint.

Invariant: nothing is written; the run may be live or long over.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl_cluster import config_file
from rl_cluster.checkpoint import Checkpoint, CheckpointStore
from rl_cluster.config import TaskConfig
from rl_cluster.effective import resolve
from rl_cluster.environments import make_environment, spec_of
from rl_cluster.evaluator import Evaluator
from rl_cluster.machine import detect


def evaluate_path(path: Path, games: int | None) -> dict[str, dict[str, Any]]:
    """Play whole games with each task's best checkpoint of a run, or with one checkpoint.

    Args:
      path: a run directory, or TASK/checkpoints/STEP in one.
      games: games per task; None: as many as the configuration says.

    Returns:
      Task to the evaluation's figures.

    Raises:
      FileNotFoundError: the path is neither.
      ValueError: fewer than one game.
      CheckpointError: a checkpoint is torn, altered, or of another architecture.
    """
    if games is not None and games < 1:
        raise ValueError(f"{games} games say nothing: ask for at least 1")
    if (path / "config.yaml").exists():
        config = _tasks(path)
        chosen = {task: _best_or_latest(path / task / "checkpoints") for task in config}
    elif (path / "manifest.json").exists():
        task_dir = path.resolve().parent.parent
        config = _tasks(task_dir.parent)
        if task_dir.name not in config:
            raise FileNotFoundError(
                f"{path} lies under {task_dir.name!r}, which is no task of the run in "
                f"{task_dir.parent}: it has {', '.join(config)}"
            )
        chosen = {task_dir.name: CheckpointStore.load(path)}
    else:
        raise FileNotFoundError(
            f"{path} is neither a run (it has no config.yaml) nor a checkpoint (no manifest.json)"
        )
    return {task: _evaluate(config[task], checkpoint, games) for task, checkpoint in chosen.items()}


def _tasks(run_dir: Path) -> dict[str, TaskConfig]:
    # Evaluation runs on the CPU, also on a machine without the GPU that the run had.
    config = config_file.load(run_dir / "config.yaml")
    overrides = [f"tasks.{task}.learner.device=cpu" for task in config.tasks]
    config = config_file.load(run_dir / "config.yaml", overrides)
    return resolve(config, detect()).config.tasks


def _best_or_latest(directory: Path) -> Checkpoint:
    store = CheckpointStore(directory, keep=1)
    best = store.load_best()
    if best is not None:
        return best
    latest = store.load_latest()
    if latest is None:
        raise FileNotFoundError(f"{directory} holds no checkpoint yet")
    return latest.checkpoint


def _evaluate(config: TaskConfig, checkpoint: Checkpoint, games: int | None) -> dict[str, Any]:
    settings = config.evaluation
    settings = dataclasses.replace(settings, video=False, games=games or settings.games)
    config = dataclasses.replace(config, evaluation=settings)
    if config.is_fleet:
        from rl_cluster.courier import Judge, load_policy  # needs the packages of the extra

        judge = Judge(config, on_step=lambda: None)
        return asdict(judge.evaluate(load_policy(config, checkpoint), checkpoint, wall_s=0.0))
    env = make_environment(config.env, num_envs=1, threads=1)
    evaluator = Evaluator(config, spec_of(env), progress=lambda: None)
    env.close()
    evaluation, _ = evaluator.evaluate(checkpoint, evaluator.random_baseline(), wall_s=0.0)
    return asdict(evaluation)
