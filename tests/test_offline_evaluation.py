"""Evaluation of what lies on disk, with a run directory of an untrained agent on Catch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import dump, from_mapping
from rl_cluster.environments import make_environment, spec_of
from rl_cluster.evaluator import Evaluator
from rl_cluster.learner import Learner, build_agent, checkpoint_schema
from rl_cluster.offline_evaluation import evaluate_path

CONFIG = from_mapping(
    {
        "tasks": ["Catch"],
        "defaults": {
            "env": {"entry": "envs.catch:make"},
            "agent": {"frame_stack": 2, "conv_channels": [4], "hidden": 8},
            "learner": {"device": "cpu", "precision": "float32"},
            "evaluation": {"games": 6},
        },
    }
)


def learner(config: RunConfig = CONFIG, seed: int = 0) -> Learner:
    """Of the task Catch, untrained."""
    task = config.tasks["Catch"]
    env = make_environment(replace(task.env, name="Catch"), num_envs=1)
    spec = spec_of(env)
    env.close()
    torch.manual_seed(seed)
    cpu = torch.device("cpu")
    return Learner(
        build_agent(task.agent, task.learner, spec, cpu),
        cpu,
        50,
        lambda version, flat: None,
        checkpoint_schema(task.agent, spec),
    )


def save(run: Path, made: Learner, updates: int, best: bool = False) -> Path:
    """A checkpoint as the learner's actor saves it."""
    made.counters.updates, made.counters.policy_version = updates, updates // 10
    extra = {"replay": {"env_steps": 7 * updates}, "best": None, "tracker_id": "x"}
    store = CheckpointStore(run / "Catch" / "checkpoints", keep=5)
    return store.save(made.checkpoint(extra), best)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.yaml").write_text(dump(CONFIG), encoding="utf-8")
    return path


def figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key != "time"}


def test_a_run_is_evaluated_at_its_latest_checkpoint_while_none_is_best(run: Path) -> None:
    save(run, learner(), updates=100)
    save(run, learner(seed=1), updates=200)
    (evaluation,) = evaluate_path(run, None).values()
    assert (evaluation["learner_updates"], evaluation["policy_version"]) == (200, 20)
    assert (evaluation["env_steps"], evaluation["env_frames"]) == (1_400, 1_400)
    assert evaluation["episodes"] == len(evaluation["returns"]) == 6
    assert set(evaluation["returns"]) <= {-1.0, 1.0}
    assert evaluation["lengths"] == [6] * 6
    assert -1 <= evaluation["random_mean_return"] <= 1
    assert evaluation["human_normalized"] is None


def test_a_run_is_evaluated_at_its_best_checkpoint_where_there_is_one(run: Path) -> None:
    save(run, learner(), updates=100, best=True)
    save(run, learner(seed=1), updates=200)
    assert evaluate_path(run, 2)["Catch"]["learner_updates"] == 100


def test_one_checkpoint_is_evaluated_by_its_path(run: Path) -> None:
    first = save(run, learner(), updates=100)
    save(run, learner(seed=1), updates=200, best=True)
    found = evaluate_path(first, None)
    assert list(found) == ["Catch"]
    assert found["Catch"]["learner_updates"] == 100


def test_a_checkpoint_is_found_by_a_relative_path(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(run, learner(), updates=100)
    monkeypatch.chdir(path)
    assert evaluate_path(Path("."), 1)["Catch"]["episodes"] == 1


def test_run_and_checkpoint_give_the_same_figures_each_time(run: Path) -> None:
    path = save(run, learner(), updates=100)
    first, again, alone = (figures(evaluate_path(p, None)["Catch"]) for p in (run, run, path))
    assert first == again == alone


def test_the_weights_of_the_checkpoint_are_those_that_play(run: Path) -> None:
    """A network that always moves left catches only what falls on the left."""
    made = learner()
    with torch.no_grad():
        for parameter in made.agent.online.network.parameters():
            parameter.zero_()
        made.agent.online.network.advantage[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    left = save(run, made, updates=100)
    with torch.no_grad():
        made.agent.online.network.advantage[-1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    right = save(run, made, updates=200)
    caught = [
        [value > 0 for value in evaluate_path(path, 30)["Catch"]["returns"]]
        for path in (left, right)
    ]
    assert any(caught[0])
    assert any(caught[1])
    assert not any(a and b for a, b in zip(*caught, strict=True))


def test_games_can_be_chosen_and_their_seeds_are_the_configured_ones(run: Path) -> None:
    save(run, learner(), updates=100)
    assert evaluate_path(run, 3)["Catch"]["seeds"] == [10_000, 10_001, 10_002]
    assert evaluate_path(run, None)["Catch"]["episodes"] == 6


def test_a_checkpoint_from_before_any_experience_can_be_evaluated(run: Path) -> None:
    made = learner()
    store = CheckpointStore(run / "Catch" / "checkpoints", keep=1)
    store.save(made.checkpoint({"replay": None, "best": None, "tracker_id": "x"}))
    evaluation = evaluate_path(run, 1)["Catch"]
    assert (evaluation["env_steps"], evaluation["policy_version"]) == (0, -1)


def test_nothing_is_written(run: Path) -> None:
    save(run, learner(), updates=100)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    evaluate_path(run, 1)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("by", ["run", "checkpoint"])
def test_a_torn_checkpoint_is_refused_by_name(run: Path, file: str, by: str) -> None:
    path = save(run, learner(), updates=100, best=True)
    os.truncate(path / file, (path / file).stat().st_size // 2)
    with pytest.raises(CheckpointError, match=f"{path.name}/{file} is torn or altered"):
        evaluate_path(run if by == "run" else path, 1)


def test_where_the_latest_is_torn_the_one_before_is_evaluated(run: Path) -> None:
    save(run, learner(), updates=100)
    torn = save(run, learner(seed=1), updates=200)
    os.truncate(torn / "model.safetensors", 10)
    assert evaluate_path(run, 1)["Catch"]["learner_updates"] == 100


@pytest.mark.parametrize("by", ["run", "checkpoint"])
@pytest.mark.parametrize("setting", [{"hidden": 9}, {"dueling": False}, {"frame_stack": 3}])
def test_a_checkpoint_of_another_architecture_is_refused(
    run: Path, by: str, setting: dict[str, Any]
) -> None:
    task = CONFIG.tasks["Catch"]
    other = replace(CONFIG, tasks={"Catch": replace(task, agent=replace(task.agent, **setting))})
    path = save(run, learner(other), updates=100, best=True)
    with pytest.raises((CheckpointError, ValueError)):
        evaluate_path(run if by == "run" else path, 1)


def test_an_evaluator_refuses_weights_that_do_not_fit() -> None:
    task = CONFIG.tasks["Catch"]
    task = replace(task, env=replace(task.env, name="Catch"))
    env = make_environment(task.env, num_envs=1)
    evaluator = Evaluator(task, spec_of(env), progress=lambda: None)
    env.close()
    agent = replace(task.agent, hidden=9)
    other = learner(replace(CONFIG, tasks={"Catch": replace(task, agent=agent)}))
    checkpoint = other.checkpoint({"replay": None})
    with pytest.raises((CheckpointError, ValueError)):
        evaluator.evaluate(checkpoint, evaluator.random_baseline(), wall_s=0.0)


def test_what_is_neither_a_run_nor_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="neither a run .* nor a checkpoint"):
            evaluate_path(path, 1)


def test_a_run_without_a_checkpoint_says_so(run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Catch/checkpoints holds no checkpoint yet"):
        evaluate_path(run, 1)


def test_a_checkpoint_that_lies_outside_its_run_is_refused(run: Path, tmp_path: Path) -> None:
    """Its configuration is the run's; without it nobody knows what it plays."""
    path = save(run, learner(), updates=100)
    alone = tmp_path / "elsewhere" / "Catch" / "checkpoints" / path.name
    alone.parent.mkdir(parents=True)
    path.rename(alone)
    with pytest.raises(ConfigError, match=r"elsewhere/config.yaml"):
        evaluate_path(alone, 1)


def test_a_checkpoint_of_a_task_that_the_run_does_not_have_is_refused(run: Path) -> None:
    path = save(run, learner(), updates=100)
    (run / "Catch").rename(run / "Katch")
    with pytest.raises((ConfigError, FileNotFoundError, CheckpointError), match="Katch"):
        evaluate_path(run / "Katch" / "checkpoints" / path.name, 1)
