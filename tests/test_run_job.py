"""`rl-cluster train` as a job of Ray: what is left when it is stopped; its status and its log.

One head serves all; a run is on that cluster (`auto`) or on one of its own beside it (`local`).
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.raylets import signal_all
from job_cluster import JobCluster
from live_run import EXPERIMENTS, ROOT

from rl_cluster.control import RUN_MARK, Control
from rl_cluster.run_directory import is_in_use, read_cluster

SETTINGS = ("defaults.checkpoint.period_s=600", "defaults.evaluation.period_s=4")
PROGRESS = re.compile(r"^\[\d[^]]*\] Catch \w+ \| .* frames .* \| loss .* \| incidents \d+$", re.M)
_START_S, _END_S = 180.0, 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobCluster]:
    with JobCluster(tmp_path_factory.mktemp("jobs") / "token") as found:
        yield found


@pytest.mark.timeout(600)
def test_a_stopped_job_has_saved_and_another_goes_on_to_its_end(
    cluster: JobCluster, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    train(cluster, "stopped", run_dir, "local", "max_seconds=600")
    await_training(run_dir)
    asked_s = time.time()
    cluster.job("stop", "stopped")
    assert cluster.end_of("stopped", _END_S)["status"] == "STOPPED"
    check_saved(cluster, run_dir, asked_s)

    before = task(run_dir)
    limits = "max_seconds=600", f"max_env_steps={before['env_steps'] + 1000}"
    train(cluster, "resumed", run_dir, "local", *limits, resume=True)
    ended, log = cluster.end_of("resumed", _START_S), cluster.log("resumed")
    assert ended["status"] == "SUCCEEDED" and ended["driver_exit_code"] == 0, log
    assert summary(run_dir)["state"] == "completed"
    assert task(run_dir)["env_steps"] >= before["env_steps"] + 1000
    assert task(run_dir)["learner_updates"] > before["learner_updates"]
    check_log(log, run_dir)
    until(lambda: not left(cluster, run_dir), _END_S, "the end of every process")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_saves_outlives_a_job_that_is_killed(cluster: JobCluster, tmp_path: Path) -> None:
    """On the job's own cluster, and slower than the 3 s that Ray leaves to `train`."""
    run_dir = tmp_path / "killed"
    train(cluster, "killed", run_dir, "auto", "max_seconds=600")
    await_training(run_dir)
    found = read_cluster(run_dir)
    assert found is not None and found.address == cluster.address
    asked_s = time.time()
    with frozen(run_dir, ("keeper", "supervisor")):
        cluster.job("stop", "killed")
        assert cluster.end_of("killed", _END_S)["status"] == "STOPPED"
        assert not [argv for argv in left(cluster, run_dir) if "train" in argv]
        assert Control(run_dir).read("ended") is None
    check_saved(cluster, run_dir, asked_s)


def test_a_wrong_configuration_fails_the_job_and_says_why(cluster: JobCluster) -> None:
    cluster.submit("wrong", EXPERIMENTS, "rl-cluster", "train", "catch.yaml", "--set", "lr=1")
    ended = cluster.end_of("wrong", _START_S)
    assert (ended["status"], ended["driver_exit_code"]) == ("FAILED", 2)
    said = "rl-cluster: unknown setting 'lr'"
    assert said in ended["message"] and said in cluster.log("wrong")


def test_what_git_ignores_is_not_uploaded(cluster: JobCluster, tmp_path: Path) -> None:
    kept, kept_out = ("catch.yaml", "rl_cluster/x.py"), (".git/x", ".venv/x", "runs/a/config.yaml",
        "chaos-results/x", "envs/__pycache__/x.pyc", ".mypy_cache/x")  # fmt: skip
    for name in (*kept, *kept_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    cluster.submit("upload", tmp_path, "find", ".", "-type", "f")
    assert cluster.end_of("upload", _START_S)["status"] == "SUCCEEDED"
    files = re.findall(r"^\./(.+)$", cluster.log("upload"), re.M)
    assert sorted(files) == sorted((".gitignore", *kept))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_whole_checkout_serves_as_the_working_directory(
    cluster: JobCluster, tmp_path: Path
) -> None:
    """The run then works with the checkout's code, on the job's own cluster, under its name."""
    run_dir = tmp_path / "runs" / "checkout"
    cluster.submit("checkout", ROOT, "env", f"HOME={tmp_path}", "rl-cluster", "train",
                   "experiments/catch.yaml", "--set", "cluster.address=auto", "max_seconds=600",
                   "max_env_steps=2000")  # fmt: skip
    ended, log = cluster.end_of("checkout", _START_S), cluster.log("checkout")
    assert (ended["status"], ended["driver_exit_code"]) == ("SUCCEEDED", 0), log
    assert task(run_dir)["env_steps"] >= 2000
    until(lambda: not left(cluster, run_dir), _END_S, "the end of every process")


def test_nobody_without_the_token_sees_or_submits_jobs(cluster: JobCluster) -> None:
    for body in (None, json.dumps({"entrypoint": "true"}).encode()):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{cluster.server}/api/jobs/", body, timeout=30)
        assert refused.value.code == 401


def train(
    cluster: JobCluster,
    name: str,
    run_dir: Path,
    address: str,
    *settings: str,
    resume: bool = False,
) -> None:
    """Submit a job that trains Catch; only the configurations are uploaded."""
    cluster.submit(name, EXPERIMENTS, "rl-cluster", "train", "catch.yaml", "--run", run_dir,
                   *(["--resume"] if resume else []),
                   "--set", f"cluster.address={address}", *SETTINGS, *settings)  # fmt: skip


def await_training(run_dir: Path) -> None:
    """Wait until there are enough updates that losing them would show."""
    until(lambda: updates(run_dir) > 50, _START_S, "training")


@contextlib.contextmanager
def frozen(run_dir: Path, roles: tuple[str, ...]) -> Iterator[None]:
    """Processes of a run that do nothing meanwhile."""
    signed = [Control(run_dir).signed(role) for role in roles]
    processes = [psutil.Process(process.pid) for process in signed if process is not None]
    assert len(processes) == len(roles)
    signal_all(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(processes, signal.SIGCONT)


def check_log(log: str, run_dir: Path) -> None:
    """A beginning, figures line by line, an end; nothing that only a terminal understands."""
    assert "\x1b" not in log and "\r" not in log
    progress, end = PROGRESS.search(log), f"{run_dir.name}  completed"
    assert progress is not None, log
    begin = log.find(f"run directory: {run_dir}\ncluster: ")
    assert -1 < begin < progress.start() < log.find(end) < log.find("report: "), log


def check_saved(cluster: JobCluster, run_dir: Path, asked_s: float) -> None:
    """The run ends as one that was interrupted, its last update in a checkpoint."""
    until(lambda: not left(cluster, run_dir), _END_S, "the end of every process")
    assert not is_in_use(run_dir)
    ended = Control(run_dir).read("ended")
    assert ended == {"state": "interrupted", "reason": None}
    assert summary(run_dir)["state"] == "interrupted"
    checkpoints = run_dir / "Catch" / "checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text().strip()
    assert (latest / "manifest.json").stat().st_mtime > asked_s
    assert int(latest.name.partition("-")[0]) == task(run_dir)["learner_updates"]


def left(cluster: JobCluster, run_dir: Path) -> list[list[str]]:
    """Command lines of processes that are the run's, or name it: its driver does."""
    found = []
    for process in cluster.processes():
        with contextlib.suppress(psutil.Error):
            marked = process.environ().get(RUN_MARK) == str(run_dir)
            if marked or str(run_dir) in process.cmdline():
                found.append(process.cmdline())
    return found


def summary(run_dir: Path) -> dict[str, Any]:
    """The newest summary.json."""
    said: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return said


def task(run_dir: Path) -> dict[str, Any]:
    """Figures of the run's one task."""
    figures: dict[str, Any] = summary(run_dir)["tasks"]["Catch"]
    return figures


def updates(run_dir: Path) -> int:
    """Learner updates; 0 before there are figures."""
    with contextlib.suppress(FileNotFoundError):
        return int(task(run_dir)["learner_updates"])
    return 0


def until(look: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look until something holds."""
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)
