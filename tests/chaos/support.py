"""A run that faults are injected into: its processes by role, what they did, what has to hold.

Invariant: only processes of the run itself are ever touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from live_run import EXPERIMENTS, ROOT, LiveRun, command, lines

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.control import Control

CATCH = EXPERIMENTS / "catch.yaml"
PERIOD_S = 3.0
"""Between two checkpoints."""
SETTINGS = (
    "max_seconds=86400",
    f"defaults.checkpoint.period_s={PERIOD_S}",
    "defaults.evaluation.period_s=3",
    "defaults.evaluation.games=5",
    "telemetry.period_s=1",
    "telemetry.tensorboard=false",
    # Faults here follow each other faster than any rule for faults should allow.
    "supervisor.window_s=2",
    "supervisor.max_fruitless_restarts=1000",
)
_LATE_S = 6.0
"""A save is late by one that is under way, and a row of figures by two ticks."""
_TITLES = {
    "rollout": ("ray::RolloutActor", "ray::"),
    "replay": ("ray::ReplayActor", "ray::"),
    "learner": ("ray::LearnerActor", "ray::"),
    "weights": ("ray::WeightsActor", "ray::"),
    "evaluator": ("ray::EvaluatorActor", "ray::"),
    "supervisor": ("ray::SupervisorActor", "ray::"),
    "keeper": ("rl_cluster.cluster.keeper", "python"),
    "driver": ("rl_cluster.cli train", "python"),
    "raylet": ("", "raylet"),
    "gcs_server": ("", "gcs_server"),
}
"""Part of the command line, and beginning of the process's name."""
_PROOF = {
    "rollout": ("env_steps",),
    "learner": ("learner_updates",),
    "replay": ("env_steps", "learner_updates"),
}
"""Counters of the summary whose rise shows that it works."""
WORKERS = ("rollout", "replay", "learner", "weights", "evaluator")
DAEMONS = ("raylet", "gcs_server")


class ChaosRun(LiveRun):
    """A live run, looked at and hurt from outside."""

    def role(self, role: str) -> list[psutil.Process]:
        """The processes that play a role now: one, unless they are being replaced."""
        part, name = _TITLES[role]
        return [p for p in self.processes(part) if _named(p, name)]

    def the(self, role: str, timeout_s: float = 60.0) -> psutil.Process:
        """The process that plays a role, as soon as there is just one."""
        return self.until(lambda: _only(self.role(role)), timeout_s, f"one {role}")

    def kill(self, victim: psutil.Process) -> None:
        """kill -9, if somebody else was not faster."""
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()

    def until(self, look: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Look until something is seen, and return that; the driver may be dead."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
                if seen := look():
                    return seen
            time.sleep(0.1)
        raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.story()}")

    def story(self) -> str:
        """What it said of itself."""
        told = "\n".join(f"{i['time']:.1f} {i['worker']} {i['kind']}: {i['cause']} -> {i['action']}"
                         for i in self.incidents())  # fmt: skip
        keeper = self.run_dir / "keeper.log"
        tail = keeper.read_text()[-2000:] if keeper.exists() else ""
        return f"{self.log()[-2000:]}\n{told}\n{tail}\n{json.dumps(self._summary_or_none())[:2000]}"

    def _summary_or_none(self) -> Any:
        try:
            return self.summary()
        except FileNotFoundError:
            return None

    def incidents(self, since_s: float = 0.0, kind: str | None = None) -> list[dict[str, Any]]:
        """Incidents after a moment, perhaps of one kind only."""
        path = self.run_dir / "incidents.jsonl"
        found = lines(path) if path.exists() else []
        return [i for i in found if i["time"] >= since_s and kind in (None, i["kind"])]

    def updates(self, task: str = "Catch") -> int:
        """Learner updates, as the newest summary has them."""
        return int(self.summary()["tasks"][task]["learner_updates"])

    def await_training(self, timeout_s: float = 120.0) -> None:
        """Wait until learning has begun, in this session, and something is saved."""
        saved = self.run_dir / "Catch" / "checkpoints" / "latest"

        def trains() -> bool:
            assert self.process.poll() is None, f"the run ended:\n{self.story()}"
            running = self.summary()["state"] == "running"
            return running and self.updates() > 50 and saved.exists()

        self.until(trains, timeout_s, "training")

    def await_rise(
        self, keys: Sequence[str], since_s: float, timeout_s: float = 120.0, task: str = "Catch"
    ) -> float:
        """Wait until counters of the summary rise again, and return when that was seen.

        Args:
          keys: counters of a task.
          since_s: unix seconds of a fault, or of its discovery. A figure travels for two ticks, so
            what is read within them may be from before.
        """
        base: list[int] = []
        deadline_s, written_s, looks = time.monotonic() + timeout_s, 0.0, 0
        while time.monotonic() < deadline_s:
            summary = self._summary_or_none()
            if summary is not None and summary["updated_at"] > max(written_s, since_s + 0.05):
                written_s, looks = summary["updated_at"], looks + 1
                now = [summary["tasks"][task][key] for key in keys]
                if base and all(n > b for n, b in zip(now, base, strict=True)):
                    return time.time()
                if looks >= 2:  # a counter falls where its worker goes on from a checkpoint
                    base = [min(n, b) for n, b in zip(now, base or now, strict=True)]
            time.sleep(0.05)
        raise AssertionError(f"{keys} did not rise within {timeout_s:g} s:\n{self.story()}")

    def kill_everything(self) -> None:
        """What a reboot does: every process of the run at once."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=0.5)
        self.process.wait()

    def keep(self) -> None:
        """What a service does after a reboot; the keeper takes the driver's place here."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl_cluster.cli", "keep", str(self.run_dir)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )

    def end_well(self, period_s: float = PERIOD_S) -> float:
        """Stop it; check all that holds for every run; return the seconds of work lost at most."""
        stopped = command("stop", self.run_dir)
        assert stopped.returncode == 0, f"{stopped.stderr}\n{self.story()}"
        self.process.wait(timeout=60)
        self.check_nothing_left()
        for task in self.summary()["tasks"]:
            check_parameters_finite(self.run_dir / task)
        check_samples_per_insert(self.summary())
        return check_counters(self.run_dir, period_s)


@contextlib.contextmanager
def chaos_run(tmp_path: Path, *settings: str) -> Iterator[ChaosRun]:
    """A run of Catch that trains already."""
    with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, *settings) as run:
        run.await_training()
        yield run


def await_recovery(run: ChaosRun, role: str, old_pid: int, since_s: float) -> float:
    """Wait until whoever follows a lost process works; return when that was seen, unix s."""
    if role in ("supervisor", "keeper"):
        return _await_heir(run, role, old_pid)
    if role == "weights":
        return _await_weights(run, old_pid)
    if role == "evaluator":
        file = run.run_dir / "Catch" / "evaluations.jsonl"
        run.until(lambda: any(e["time"] > since_s for e in lines(file)), 120, "an evaluation")
        return time.time()
    found_s = since_s if role == "driver" else await_discovery(run, role, since_s)
    if role == "rollout":  # who steps again is known sooner than counters show it
        recovered_s = _await_recovered(run, role, found_s)
        run.await_rise(_PROOF[role], found_s)
        return recovered_s
    return run.await_rise(_PROOF.get(role, _PROOF["replay"]), found_s)


def await_discovery(run: ChaosRun, role: str, since_s: float) -> float:
    """Wait until an incident says that it was lost; return the incident's time, unix s."""
    found = run.until(lambda: _discovery(run, role, since_s), 120, f"an incident of {role}")
    return float(found["time"])


def _await_recovered(run: ChaosRun, role: str, since_s: float) -> float:
    """Wait until an incident says that it gets on; return the incident's time, unix s."""

    def recovered() -> dict[str, Any] | None:
        found = run.incidents(since_s, "worker_recovered")
        return next((i for i in found if str(i["worker"]).startswith(role)), None)

    return float(run.until(recovered, 120, f"{role} that gets on")["time"])


def _await_weights(run: ChaosRun, old_pid: int) -> float:
    """Ray brings the holder back, without a word; then rollouts have to act with new versions."""

    def figures() -> dict[str, Any]:
        task: dict[str, Any] = run.summary()["tasks"]["Catch"]
        return task

    run.until(lambda: any(p.pid != old_pid for p in run.role("weights")), 120, "another holder")
    seen_s, version = time.time(), figures()["policy_version"]
    # Without new versions, the newest 4,096 steps would by then lag half of these behind.
    enough = version + 60
    run.until(lambda: figures()["policy_version"] >= enough, 120, "new versions")
    assert figures()["policy_lag"]["p50"] < 15, run.story()
    return seen_s


def _discovery(run: ChaosRun, role: str, since_s: float) -> dict[str, Any] | None:
    """The incident by which it was found to be lost."""
    if role in (*DAEMONS, "supervisor"):
        return next(iter(run.incidents(since_s, "cluster_lost")), None)
    failed = run.incidents(since_s, "worker_failed")
    return next((i for i in failed if str(i["worker"]).startswith(role)), None)


def _await_heir(run: ChaosRun, role: str, old_pid: int) -> float:
    control = Control(run.run_dir)

    def heir() -> bool:
        signed = control.signed(role)
        return signed is not None and signed.pid != old_pid and signed.alive

    run.until(heir, 120, f"another {role}")
    pulse = control.pulse(role)
    run.until(lambda: control.pulse(role) != pulse, 120, f"a {role} that gets on")
    return time.time()


def check_parameters_finite(task_dir: Path) -> None:
    """Every tensor of the newest checkpoint is finite."""
    loaded = CheckpointStore(task_dir / "checkpoints", keep=1).load_latest()
    assert loaded is not None and not loaded.refused, loaded
    for name, tensor in {**loaded.checkpoint.model, **loaded.checkpoint.optimizer}.items():
        if tensor.is_floating_point():
            assert torch.isfinite(tensor).all(), name


def check_samples_per_insert(summary: dict[str, Any], tolerance: float = 0.15) -> None:
    """What was learned from stands to what was collected as it should, where both are known."""
    for task, figures in summary["tasks"].items():
        wanted, actual = figures["samples_per_insert"].values()
        # The ratio lags by a fixed number of samples: soon after a restart that is a large share.
        assert actual is None or actual <= wanted * (1 + tolerance), (task, wanted, actual)


def check_counters(run_dir: Path, period_s: float) -> float:
    """Counters go back by the work of one checkpoint period at most; return the most lost, s."""
    rows = [row for row in lines(run_dir / "metrics.jsonl") if row["task"] is not None]
    wall_s = [row["wall_s"] for row in lines(run_dir / "metrics.jsonl")]
    most_s = 0.0
    for task in {row["task"] for row in rows}:
        for key in ("learner_updates", "env_steps"):
            mine = [(row["time"], row[key]) for row in rows if row["task"] == task]
            most_s = max([most_s, *_lost_s(mine)])
    assert most_s <= period_s + _LATE_S, f"{most_s:.1f} s of work lost, saved every {period_s:g} s"
    back_s = max((a - b for a, b in zip(wall_s, wall_s[1:], strict=False)), default=0.0)
    assert back_s <= period_s + _LATE_S, f"the run's own time went back by {back_s:.1f} s"
    return most_s


def _lost_s(rows: Sequence[tuple[float, int]]) -> Iterator[float]:
    """For each fall of a counter: from when it stood so low until it stood highest."""
    for i in range(1, len(rows)):
        top, now = rows[i - 1][1], rows[i][1]
        if now < top:
            reached_s = next(time_s for time_s, value in rows if value >= top)
            low_s = max((time_s for time_s, value in rows[:i] if value <= now), default=rows[0][0])
            yield max(0.0, reached_s - low_s)


def stale_writes(task_dir: Path) -> int:
    """Checkpoints of an epoch that was over when they were written, and evaluations out of turn."""
    manifests = sorted(task_dir.glob("checkpoints/[0-9]*/manifest.json"),
                       key=lambda path: path.stat().st_mtime_ns)  # fmt: skip
    epochs = [int(json.loads(path.read_text())["epoch"]) for path in manifests]
    evaluations = task_dir / "evaluations.jsonl"
    versions = [e["policy_version"] for e in lines(evaluations)] if evaluations.exists() else []
    return _falls(epochs) + _falls(versions)


def _falls(values: Sequence[int]) -> int:
    highest = -1
    falls = 0
    for value in values:
        falls += value < highest
        highest = max(highest, value)
    return falls


def _named(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith(name)
    return False


def _only(found: Sequence[psutil.Process]) -> psutil.Process | None:
    return found[0] if len(found) == 1 else None
