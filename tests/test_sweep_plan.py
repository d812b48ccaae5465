"""A sweep on disk: the same again goes on, anything else is refused before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_run import EXPERIMENTS, command
from test_run_directory import held_by_another_process

from rl_cluster.config import ConfigError
from rl_cluster.sweep_plan import SweepPlan, is_sweep, plan_sweep, runs_of

CATCH = EXPERIMENTS / "catch.yaml"


def planned(directory: Path, *settings: str, seeds: tuple[int, ...] = (4, 6)) -> SweepPlan:
    return plan_sweep(directory, CATCH, ["max_env_steps=5000", *settings], seeds)


def test_each_seed_has_a_run_directory_and_differs_in_nothing_else(tmp_path: Path) -> None:
    plan = planned(tmp_path / "lr")
    plan.write()
    assert [path.name for path in runs_of(tmp_path / "lr")] == ["lr-seed-4", "lr-seed-6"]
    assert [plan.seeded(seed).seed for seed in plan.seeds] == [4, 6]
    assert plan.seeded(4).tasks == plan.seeded(6).tasks
    assert plan.seeded(4).max_env_steps == 5000


def test_the_same_sweep_again_is_taken_and_its_file_stays(tmp_path: Path) -> None:
    planned(tmp_path).write()
    before = (tmp_path / "sweep.yaml").read_bytes()
    again = planned(tmp_path)
    again.check_same()
    again.write()
    assert (tmp_path / "sweep.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "seeds", "said"),
    [
        (["defaults.learner.learning_rate=1e-4"], (4, 6), "tasks.Catch.learner.learning_rate"),
        (["max_env_steps=6000"], (4, 6), "max_env_steps is 5000, not 6000"),
        ([], (4, 8), r"seeds is \[4, 6\], not \[4, 8\]"),
    ],
)
def test_another_sweep_in_the_same_directory_is_refused(
    tmp_path: Path, settings: list[str], seeds: tuple[int, ...], said: str
) -> None:
    planned(tmp_path).write()
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, *settings, seeds=seeds).check_same()


def change_file(sweep: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = yaml.safe_load((sweep / "sweep.yaml").read_text())
    change(record)
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(record))


def test_a_setting_that_came_with_a_later_version_makes_no_other_sweep(tmp_path: Path) -> None:
    planned(tmp_path).write()
    change_file(tmp_path, lambda record: record["config"].pop("supervisor"))
    change_file(tmp_path, lambda record: record["config"]["tasks"]["Catch"].pop("checkpoint"))
    planned(tmp_path).check_same()
    with pytest.raises(ConfigError, match=r"supervisor\.backoff_s is 1\.0, not 7\.5"):
        planned(tmp_path, "supervisor.backoff_s=7.5").check_same()


def test_a_setting_that_a_later_version_lacks_is_named_with_its_file(tmp_path: Path) -> None:
    planned(tmp_path).write()
    change_file(tmp_path, lambda record: record["config"].update(old_setting=3))
    with pytest.raises(ConfigError, match=r"sweep\.yaml cannot be read: .*'old_setting'"):
        planned(tmp_path).check_same()


def test_a_sweep_that_was_moved_finds_its_runs(tmp_path: Path) -> None:
    planned(tmp_path / "old").write()
    (tmp_path / "old").rename(tmp_path / "new")
    again = planned(tmp_path / "new")
    again.check_same()
    assert [again.run_dir(seed) for seed in (4, 6)] == runs_of(tmp_path / "new")
    assert again.run_dir(4) == tmp_path / "new" / "old-seed-4"


def test_a_damaged_sweep_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"seeds": [1]}))
    assert is_sweep(tmp_path)
    with pytest.raises(ConfigError, match="lacks name, seeds or config"):
        runs_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 4}, "seeds is 4, not a list"),
        ({"seeds": [4, "six"]}, "'six' in seeds is no whole number"),
        ({"name": 3}, "name is 3, not text"),
        ({"config": None}, "config is None, not a mapping"),
    ],
)
def test_what_a_sweeps_file_cannot_hold_is_named(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    planned(tmp_path).write()
    change_file(tmp_path, lambda record: record.update(change))
    with pytest.raises(ConfigError, match=said):
        runs_of(tmp_path)


def test_who_holds_the_directory_is_named(tmp_path: Path) -> None:
    """It may be a run's, and not another sweep's."""
    with held_by_another_process(tmp_path):
        done = command("sweep", CATCH, "--seeds", 4, "--sweep", tmp_path)
        holder = (tmp_path / "lock").read_text().strip()
    assert done.returncode == 2 and holder in done.stderr and "--sweep" in done.stderr
    assert "--run" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", 4, 4], "comes twice"),
        (["--seeds", -1], "seed is -1"),
        (["--seeds", 4, "--set", "seed=3"], "--seeds"),
        (["--seeds", 4, "--set", "max_seconds=null"], "never ends"),
        (["--seeds", 4, "--set", "max_env_step=3"], "max_env_steps"),
        (["--set", "max_env_steps=5"], "--seeds"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_written(
    tmp_path: Path, arguments: list[object], said: str
) -> None:
    done = command("sweep", CATCH, *arguments, "--sweep", tmp_path / "sweep")
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "sweep").exists()
