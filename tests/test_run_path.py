"""Where a run's directory is, in a job of Ray and outside of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl_cluster.cli import main
from rl_cluster.exit_codes import FAILED, WRONG_USAGE
from rl_cluster.run_directory import RunDirectoryError
from rl_cluster.run_path import run_path, sweep_path

CONFIG = Path("experiments/catch.yaml")


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = {"metadata": {"job_submission_id": "two-games", "job_name": "two-games"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(said))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_run_without_a_name_is_called_after_its_configuration() -> None:
    path = run_path(None, CONFIG)
    assert path.parent == Path("runs") and path.name.startswith("catch-2")
    assert run_path(Path("runs/mine"), CONFIG) == Path("runs/mine")
    assert sweep_path(None, CONFIG) == Path("runs/catch-sweep")


@pytest.mark.usefixtures("in_a_job")
def test_a_run_of_a_job_has_the_jobs_name_and_outlives_its_working_directory(
    tmp_path: Path,
) -> None:
    assert run_path(None, CONFIG) == tmp_path / "runs" / "two-games"
    assert run_path(Path("/data/runs/catch"), CONFIG) == Path("/data/runs/catch")
    assert sweep_path(None, CONFIG) == tmp_path / "runs" / "two-games"


@pytest.mark.usefixtures("in_a_job")
def test_a_job_may_not_name_a_directory_that_ray_removes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RunDirectoryError, match="runs/two-games"):
        run_path(Path("runs/catch"), CONFIG)
    with pytest.raises(RunDirectoryError, match="runs/two-games"):
        sweep_path(Path("runs/fast"), CONFIG)
    assert main(["train", str(CONFIG), "--run", "runs/catch"]) == WRONG_USAGE
    assert "name an absolute path" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["train", str(CONFIG), "--run", str(tmp_path / "file" / "run")]) == FAILED
    assert "cannot use" in capsys.readouterr().err
