"""What a supervisor is made from: tasks that joined, and tasks whose checkpoints are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_checkpoint import checkpoint

from rl_cluster.algorithm import checkpoint_schema
from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.cluster.run_plan import plan_of
from rl_cluster.config_file import from_mapping, to_mapping
from rl_cluster.preparation import PreparedRun, prepare

CATCH = {"name": "Catch", "entry": "envs.catch:make"}


def prepared(*tasks: str) -> PreparedRun:
    return prepare(from_mapping({"tasks": {task: {"env": CATCH} for task in tasks}}))


def save(run_dir: Path, task: str, run: PreparedRun, tracker_id: str) -> Path:
    """A checkpoint of a task; return its directory."""
    schema = checkpoint_schema(run.effective.config.tasks[task], run.specs[task])
    saved = replace(checkpoint(1), schema=schema, state={"tracker_id": tracker_id})
    return CheckpointStore(run_dir / task / "checkpoints", keep=1).save(saved)


def damage(checkpoint_dir: Path) -> None:
    (checkpoint_dir / "model.safetensors").write_bytes(b"not what was saved")


def test_a_task_whose_checkpoints_are_refused_does_not_keep_the_others_from_training(
    tmp_path: Path,
) -> None:
    run = prepared("A", "B")
    save(tmp_path, "A", run, "known")
    damage(save(tmp_path, "B", run, "lost"))
    plan = plan_of(run, tmp_path, {})
    assert plan.tracker_ids["A"] == "known" and plan.tracker_ids["B"] != "lost"
    assert list(plan.specs) == ["A", "B"]


def test_where_those_of_every_task_are_refused_so_is_the_run(tmp_path: Path) -> None:
    run = prepared("A", "B")
    for task in ("A", "B"):
        damage(save(tmp_path, task, run, "lost"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        plan_of(run, tmp_path, {})


def test_a_supervisor_that_is_made_again_takes_in_what_joined_since(tmp_path: Path) -> None:
    """Ray makes it from what the first one was made from."""
    both = prepared("A", "B")
    settings = to_mapping(both.effective.config)["tasks"]["B"]
    plan = plan_of(prepared("A"), tmp_path, {})
    save(tmp_path, "B", both, "B's own")
    plan.take_in({"B": settings})
    assert plan.config.tasks["B"] == both.effective.config.tasks["B"]
    assert plan.specs["B"] == both.specs["B"] and plan.tracker_ids["B"] == "B's own"
    before = plan.config.tasks["A"]
    plan.take_in({"B": settings})
    assert list(plan.config.tasks) == ["A", "B"] and plan.config.tasks["A"] is before


def test_a_task_that_was_removed_and_added_otherwise_is_taken_in_as_it_is_now(
    tmp_path: Path,
) -> None:
    both = prepared("A", "B")
    settings = to_mapping(both.effective.config)["tasks"]["B"]
    plan = plan_of(both, tmp_path, {"B": settings})
    fitted = plan.config.tasks["B"]
    plan.take_in({"B": settings})
    assert plan.config.tasks["B"] is fitted, "what this machine made of the same settings stays"
    other = settings | {"learner": settings["learner"] | {"batch": 7}}
    plan.take_in({"B": other})
    assert plan.config.tasks["B"].learner.batch == 7
