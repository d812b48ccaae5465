"""A run at Weights & Biases: one W&B run per task, grouped by the run.

Invariant: whatever W&B refuses is a `WandbError`, and what is here may block for as long as W&B
likes: only the tracker's process calls it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.metrics import metric_named
from rl_cluster.telemetry.rows import Row, extra

PROJECT = "rl-cluster"
_MODES = ("online", "offline", "disabled")
_WALL_TAG = metric_named("wall_s").tag
_ALERT_GAP_S = 600.0
_OPEN_S = 20.0  # less than a run that ends gives the tracker
_FLUSH_S = 1.0  # what W&B's process has not written is lost when it is killed
_LEVELS = {
    "task_parked": "ERROR",
    "worker_parked": "ERROR",
    "checkpoint_failed": "ERROR",
    "checkpoint_refused": "ERROR",
    "journal_damaged": "ERROR",
    "not_saved": "ERROR",
    "worse_than_random": "ERROR",
    "paused": "INFO",
    "resumed": "INFO",
    "tier_requested": "INFO",
    "setting_changed": "INFO",
    "task_added": "INFO",
    "task_removed": "INFO",
    "policy_rolled_back": "INFO",
    "load_changed": "INFO",
    "worker_recovered": "INFO",
    "stream_again": "INFO",
    "checkpoint_resumed": "INFO",
    "journal_resumed": "INFO",
    "restored": "INFO",
    "batches_finite": "INFO",
    "tracker_again": "INFO",
}
"""Kind of incident to level of alert; all others are WARN."""


class WandbError(RuntimeError):
    """Weights & Biases refused something, or could not be reached."""


class WandbRuns:
    """The open W&B runs of one run, under RUN/wandb; offline unless logged in.

    Figures of the run stand in every task's W&B run. W&B takes one row a step, in order: of a
    task that stands still, and what a resumed one does again before it passes the newest step sent,
    metrics.jsonl alone tells.
    """

    def __init__(self, run_dir: Path) -> None:
        self._library, self._run_dir = extra("wandb", "wandb"), run_dir
        self._runs: dict[str, Any] = {}
        self._run_values: dict[str, float] = {}
        self._films: dict[str, dict[str, Any]] = {}
        """Of each task, until its next row."""

    def __contains__(self, task: str) -> bool:
        """Whether the task's W&B run is open."""
        return task in self._runs

    def open(self, task: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Open a task's W&B run, or go on in the one of that id.

        Args:
          task: of the run.
          run_id: W&B's.
          config: what the run trains with.

        Raises:
          WandbError: it is refused, or cannot be reached.
          ValueError: WANDB_MODE holds what it cannot.
        """
        patience = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": _OPEN_S}
        settings = self._library.Settings(
            **patience,
            silent=True,
            console="off",
            x_disable_stats=True,
            x_transaction_log_flush_interval=_FLUSH_S,
        )
        with self._named(f"W&B run {run_id!r} of task {task!r} cannot be opened"):
            self._runs[task] = self._library.init(
                project=PROJECT,
                group=self._run_dir.name,
                name=f"{self._run_dir.name}/{task}",
                id=run_id,
                resume="allow",
                reinit="create_new",
                mode=wandb_mode(),
                dir=str(self._run_dir),
                config=dict(config),
                settings=settings,
            )

    def row(self, row: Row) -> None:
        """Log one row of a task; a row of the run is kept for the tasks' next rows."""
        if row.task is None:
            self._run_values = _tagged(row)
        run = self._runs.get(row.task or "")
        if run is None or row.step < run.step:
            return
        films = self._films.pop(row.task or "", {})
        with self._named(f"W&B took no row of {row.task}"):
            values = {**self._run_values, **_tagged(row), _WALL_TAG: row.wall_s, **films}
            run.log(values, step=row.step, commit=True)

    def incident(self, incident: Incident) -> None:
        """Send an alert; one of a kind within ten minutes reaches people."""
        if not self._runs:
            return
        run = self._runs.get(incident.task or "") or next(iter(self._runs.values()))
        where = " ".join(filter(None, (incident.task, incident.worker)))
        text = f"{where}: {incident.cause}. {incident.action}. {incident.detail}".strip(": ")
        level = _LEVELS.get(incident.kind, "WARN")
        with self._named(f"W&B took no alert of {incident.kind}"):
            run.alert(incident.kind[:63], text, level=level, wait_duration=_ALERT_GAP_S)

    def film(self, task: str, path: Path) -> None:
        """Show a film (.gif, .mp4) with the task's next row."""
        with self._named(f"W&B took no {path}"):
            film = self._library.Video(str(path), format=path.suffix[1:])
        self._films.setdefault(task, {})[f"videos/{path.stem}"] = film

    def checkpoint(self, task: str, path: Path) -> None:
        """Keep a copy of a checkpoint's directory as the newest version of the task's model.

        Raises:
          WandbError: it is refused.
          FileNotFoundError: it is gone.
        """
        if not path.is_dir():
            raise FileNotFoundError(path)
        name = re.sub(r"[^\w.-]", "-", f"{self._run_dir.name}-{task}")
        with self._named(f"W&B took no checkpoint {path}"):
            artifact = self._library.Artifact(name, "model", metadata={"checkpoint": path.name})
            artifact.add_dir(str(path))
            self._runs[task].log_artifact(artifact, aliases=["best", path.name])

    def close(self) -> None:
        """Finish every run and end W&B's own process; harmless when repeated."""
        while self._runs:
            self._runs.popitem()[1].finish()
        self._library.teardown()

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._library.Error as error:
            raise WandbError(f"{what}: {error}") from error


def check_available() -> None:
    """Raise ModuleNotFoundError without the package, ValueError for an unknown WANDB_MODE."""
    if importlib.util.find_spec("wandb") is None:
        extra("wandb", "wandb")
    asked = os.environ.get("WANDB_MODE", "")
    if asked and asked not in _MODES:
        raise ValueError(f"WANDB_MODE is {asked!r}: it must be online, offline or disabled")


def wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Return how W&B would run: as WANDB_MODE says, else online where a login is found.

    With a login, W&B may ask its server whose it is; that takes seconds where it cannot be reached.

    Raises:
      ModuleNotFoundError, ValueError: as `check_available`.
    """
    check_available()
    match os.environ.get("WANDB_MODE", ""):
        case "online" | "offline" | "disabled" as asked:
            return asked
    return "online" if extra("wandb", "wandb").login(prompt=False, verify=False) else "offline"


def _tagged(row: Row) -> dict[str, float]:
    return {metric_named(name).tag: value for name, value in row.known_values.items()}
