"""The run's handle: what command line and notebooks call to see and steer a live run.

Invariant: a handle holds no part of the run. Dropping it, or the process that made it, changes
nothing in training. What it shows beside the summary is read from files: see `RecordedRun`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import services
from ray.exceptions import RayError
from ray.util import list_named_actors

from rl_cluster.cluster import names, runtime
from rl_cluster.cluster.actors import Actor, Ref, cause_of, read
from rl_cluster.config_file import load
from rl_cluster.control import Control
from rl_cluster.levers import LIVE
from rl_cluster.notebook.names import Names, tree_of_names
from rl_cluster.notebook.recorded import RecordedRun
from rl_cluster.run_directory import RunDirectoryError, is_in_use, read_address
from rl_cluster.supervision.tiers import AUTO, CUSTOM
from rl_cluster.telemetry.summary import Summary

if TYPE_CHECKING:
    import ipywidgets

_ANSWER_TIMEOUT_S, _LINE_TIMEOUT_S = 60.0, 5.0
_LOOK_S = 0.3


class RunUnreachable(RuntimeError):
    """The run's cluster or supervisor does not answer, or refused; the message says which."""


class RunHandle(RecordedRun):
    """A live run: its levers, and all that a recorded run shows.

    `tasks`, `tiers` and `settings` hold names to be picked with TAB, such as `run.tasks.Pong`,
    `run.tiers.heavy` and `run.settings.learner.batch`.
    """

    def __init__(self, run_dir: Path, supervisor: Actor) -> None:
        super().__init__(run_dir)
        self._supervisor = supervisor
        self.tiers = Names("tier", self._tier_names)
        """Names that `tier` takes."""
        self.settings = tree_of_names(LIVE)
        """Names that `change` takes."""

    def summary(self) -> Summary:
        """State and figures, as in summary.json, asked of the run itself."""
        summary: Summary = _answer(self._supervisor.summary.remote())
        return summary

    @property
    def dashboard_url(self) -> str | None:
        """Where Ray's dashboard of the run's cluster is; None where it has none."""
        find_address: Any = services.get_webui_url_from_internal_kv
        address = find_address()
        return f"http://{address}" if address else None

    def workers(self) -> dict[str, str]:
        """What each of the run's actors says of itself now, by name."""
        asked: dict[str, Ref] = {}
        for name in sorted(list_named_actors()):
            with contextlib.suppress(ValueError):  # it has just ended
                actor: Any = ray.get_actor(name)
                asked[name] = actor.__ray_call__.remote(repr)
        return {name: _line(ref) for name, ref in asked.items()}

    def tier(self, name: str) -> None:
        """Ask for a tier: light, medium, heavy, auto, custom or one of the configuration's."""
        _answer(self._supervisor.tier.remote(name))

    def pause(self, task: str | None = None) -> None:
        """Let a task rest, or every one; RunUnreachable names the tasks where there is no such."""
        _answer(self._supervisor.pause.remote(task))

    def resume(self, task: str | None = None) -> None:
        """Let a paused task go on, or every one; one that was parked is tried again."""
        _answer(self._supervisor.resume.remote(task))

    def change(self, settings: Mapping[str, Any], task: str | None = None) -> None:
        """Change live settings, such as `learner.learning_rate`, of a task or of all.

        RunUnreachable says which of them cannot be; then none has changed.
        """
        _answer(self._supervisor.change.remote(task, dict(settings)))

    def add(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        """Take a task into the run: the first task's settings, or others as in `tasks.TASK`.

        Raises:
          ConfigError: the settings, or the environment that they name, cannot be.
        """
        from rl_cluster.preparation import prepare_added  # imports torch

        added = prepare_added(self._run_dir, task, settings or {})
        _answer(self._supervisor.add.remote(task, added))

    def remove(self, task: str) -> None:
        """Let a task save and leave the run; its files stay."""
        _answer(self._supervisor.remove.remote(task))

    def rollback(self, task: str, version: int | None = None) -> int:
        """Send a fleet's rovers an earlier policy; None: the one before the newest.

        Returns:
          The new version that it is sent as.

        Raises:
          RunUnreachable: the task is no fleet, or there is no such policy; the message says which.
        """
        sent: int = _answer(self._supervisor.rollback.remote(task, version))
        return sent

    def checkpoint(self, task: str | None = None) -> dict[str, str | None]:
        """Save a task now, or every one; task to its checkpoint's path, None where it failed."""
        paths: dict[str, str | None] = _answer(self._supervisor.checkpoint.remote(task))
        return paths

    def stop(self) -> None:
        """Ask the run to save everything and end; it has when `summary.json` says so."""
        Control(self._run_dir).request("stop")

    def detach(self) -> None:
        """Disconnect from the run, which goes on; then this process may attach to another."""
        runtime.leave()

    def widget(self) -> ipywidgets.VBox:
        """A panel for Jupyter: live state, tier, pause and resume, live settings, games, stop.

        Raises:
          ModuleNotFoundError: the extra `notebook` is not installed.
        """
        from rl_cluster.notebook.panel import Panel

        return Panel(self, self._run_dir).box

    def _tier_names(self) -> list[str]:
        return [*load(self._run_dir / "config.yaml").load.tiers, AUTO, CUSTOM]


def attach(run_dir: str | Path, wait_s: float = 0.0) -> RunHandle:
    """Connect to the live run in a directory.

    Args:
      run_dir: the run's.
      wait_s: longest to wait for a run that is still starting.

    Raises:
      RunDirectoryError: it is not running, is still starting, or this is no run.
      RunUnreachable: its cluster or its supervisor does not answer.
    """
    path, deadline_s = Path(run_dir).absolute(), time.monotonic() + wait_s
    while True:
        try:
            return _attach(path)
        except (RunDirectoryError, RunUnreachable):
            if time.monotonic() > deadline_s or not is_in_use(path):
                raise
        time.sleep(_LOOK_S)


def _attach(path: Path) -> RunHandle:
    cluster = read_address(path)
    try:
        runtime.join(cluster)
        return RunHandle(path, ray.get_actor(names.SUPERVISOR, namespace=cluster.namespace))
    except (ConnectionError, ValueError, RayError) as error:
        raise RunUnreachable(
            f"the run in {path} says that it is at {cluster.address}, but it does not answer: "
            f"{cause_of(error)}"
        ) from error


def _answer(ref: Ref) -> Any:
    try:
        return read(ref, _ANSWER_TIMEOUT_S)
    except RayError as error:
        raise RunUnreachable(cause_of(error)) from error


def _line(ref: Ref) -> str:
    try:
        return str(read(ref, _LINE_TIMEOUT_S))
    except RayError as error:
        return f"no answer: {cause_of(error)}"
