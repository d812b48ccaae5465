"""The tracker: reads a run's files and tells Weights & Biases what is new in them.

Invariant: what W&B could not be told stays in the files, and is told when it answers, or at the end
as an offline session; how far it was told outlives the tracker, so that its heir tells nothing
twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import load, to_mapping
from rl_cluster.control import Control, PulseReader
from rl_cluster.effective import read_effective
from rl_cluster.signals import StopFlag
from rl_cluster.supervision.spacing import Spacing
from rl_cluster.telemetry import incidents, writers
from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.jsonl import read_new
from rl_cluster.telemetry.rows import Row
from rl_cluster.telemetry.tracker_process import ROLE
from rl_cluster.telemetry.wandb_runs import WandbError, WandbRuns

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_MOST_BYTES = 4 << 20
_RETRY_S = (30.0, 1_800.0, 3_600.0)
"""After W&B did not answer: first gap, longest gap, and calm."""
_ABANDONED_S = 120.0
"""A run whose supervisor is silent for so long is over, or will send for another tracker."""
_FILMS = (".gif", ".mp4")


@dataclass
class Told:
    """How far W&B was told of a run; kept in control/tracker_told.json."""

    metrics_bytes: int = 0
    incidents_bytes: int = 0
    films: dict[str, int] = field(default_factory=dict)
    """TASK/videos/NAME to the time (ns) of the film that was sent."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Task to the best checkpoint's directory that was sent."""


class Tracker:
    """Follows one run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._control = run_dir, Control(run_dir)
        self._sends_checkpoints = load(run_dir / "config.yaml").telemetry.wandb_checkpoints
        self._runs = WandbRuns(run_dir)
        self._told = Told(**(self._control.read("tracker_told") or {}))
        self._retry, self._is_in_trouble = Spacing(*_RETRY_S), False
        self._supervisor = PulseReader(self._control, "supervisor", time.monotonic())

    def follow(self, stop: StopFlag) -> None:
        """Look and tell until a signal asks to stop, or the run is left alone.

        Raises:
          ConnectionError: W&B's own process is gone, and with it all that was opened.
        """
        while not stop.wait(_LOOK_S) and not self._is_abandoned:
            self.look()
        if not self._is_in_trouble:
            self.look()
        self._tell_rest()
        self.close()

    def _tell_rest(self) -> None:
        """Tell all that is new; what W&B did not open, it is told offline, for `wandb sync`."""
        try:
            with _offline() if self._is_in_trouble else nullcontext():
                while self._tell():
                    self._control.beat(ROLE)
        except ConnectionError:
            raise
        except (WandbError, OSError) as error:
            _log.error("not told: %s", error)

    def close(self) -> None:
        """Let W&B finish what it was told."""
        self._runs.close()

    @property
    def _is_abandoned(self) -> bool:
        return self._supervisor.silence_s(time.monotonic()) > _ABANDONED_S

    def look(self) -> None:
        """Tell what is new; while W&B does not answer, try again at growing intervals.

        Raises:
          ConnectionError: W&B's own process is gone, and with it all that was opened.
        """
        now_s = time.monotonic()
        self._control.beat(ROLE)
        if self._is_in_trouble and self._retry.wait_s(now_s) > 0:
            return
        try:
            self._tell()
        except ConnectionError:  # no retry here gets it back: an heir starts another
            raise
        except (WandbError, OSError) as error:
            self._retry.done(time.monotonic())  # the attempt itself may have taken long
            if not self._is_in_trouble:
                self._say("tracker_unreachable", str(error), "training goes on; tried again")
            self._is_in_trouble = True
            return
        if self._is_in_trouble:
            self._say("tracker_again", "W&B answers", "it is told what it missed")
        self._is_in_trouble = False

    def _tell(self) -> bool:
        """Tell what is new, of each file so much at once; return whether there were lines."""
        told = self._told
        before = told.incidents_bytes, told.metrics_bytes
        for task, run_id in (self._control.read("trackers") or {}).items():
            if task not in self._runs:
                self._open(task, run_id)
            self._tell_films(task)
            if self._sends_checkpoints:
                self._tell_checkpoint(task)
        directory = self._run_dir
        items, end = read_new(directory / incidents.FILE_NAME, told.incidents_bytes, _MOST_BYTES)
        for item in items:
            self._runs.incident(Incident(**item))
        told.incidents_bytes = end
        items, end = read_new(directory / writers.FILE_NAME, told.metrics_bytes, _MOST_BYTES)
        for item in items:
            self._runs.row(Row.from_columns(item))
        told.metrics_bytes = end
        self._control.write("tracker_told", asdict(told))
        return before != (told.incidents_bytes, told.metrics_bytes)

    def _open(self, task: str, run_id: str) -> None:
        try:
            self._runs.open(task, run_id, to_mapping(_what_runs(self._run_dir)))
        except WandbError:
            self._runs.close()  # W&B's process takes the id for one in use until it ends
            raise
        self._control.beat(ROLE)

    def _tell_films(self, task: str) -> None:
        files = sorted((self._run_dir / task / "videos").glob("*"))
        for path in (file for file in files if file.suffix in _FILMS):
            name, made_ns = str(path.relative_to(self._run_dir)), path.stat().st_mtime_ns
            if self._told.films.get(name) != made_ns:
                self._runs.film(task, path)
                self._told.films[name] = made_ns

    def _tell_checkpoint(self, task: str) -> None:
        """Send what `best` names, unless that was sent; it may be removed while it is read."""
        directory = self._run_dir / task / "checkpoints"
        try:
            best = (directory / "best").read_text().strip()
            if self._told.checkpoints.get(task) != best:
                self._runs.checkpoint(task, directory / best)
                self._told.checkpoints[task] = best
        except FileNotFoundError:
            return

    def _say(self, kind: str, cause: str, action: str) -> None:
        """Let the supervisor write an incident."""
        said = {"time": time.time(), "kind": kind, "cause": cause, "action": action}
        _log.info("%s", said)
        with suppress(OSError):
            self._control.write("tracker_said", said)


def _what_runs(run_dir: Path) -> RunConfig:
    """Tasks that were added live included; what was asked for, where nothing says."""
    try:
        return read_effective(run_dir)
    except ConfigError as error:
        _log.warning("%s", error)
        return load(run_dir / "config.yaml")


@contextmanager
def _offline() -> Iterator[None]:
    """Let W&B write files for `wandb sync`, and ask its server for nothing."""
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        del os.environ["WANDB_MODE"]
        if before is not None:
            os.environ["WANDB_MODE"] = before
