"""The run's handle: what command line and notebooks call to see and steer a live run.

Invariant: a handle holds no part of the run, nor a connection to it but while a lever moves.
Dropping it, or the process that made it, changes nothing in training; a cluster that is made anew,
or dies, changes nothing for who holds it. What it shows is read from files: see `RecordedRun`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
from rl_cluster.notebook.recorded import NO_RUN, RecordedRun
from rl_cluster.run_directory import (
    ClusterAddress,
    RunDirectoryError,
    has_reported,
    is_in_use,
    not_running,
    read_address,
)
from rl_cluster.supervision.tiers import AUTO, CUSTOM

if TYPE_CHECKING:
    import ipywidgets

_ANSWER_TIMEOUT_S, _LINE_TIMEOUT_S = 60.0, 5.0
_LOOK_S = 0.3


class RunUnreachable(RuntimeError):
    """The run's cluster or supervisor does not answer, or refused; the message says which."""


class RunHandle(RecordedRun):
    """A live run: its levers, and all that a recorded run shows.

    `tasks`, `tiers` and `settings` hold names to be picked with TAB, such as `run.tasks.Pong`,
    `run.tiers.heavy` and `run.settings.learner.batch`. Levers raise RunUnreachable where the
    run does not answer, or refuses, and RunDirectoryError where it is over or starts anew.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.tiers = Names("tier", self._tier_names)
        """Names that `tier` takes."""
        self.settings = tree_of_names(LIVE)
        """Names that `change` takes."""

    @property
    def dashboard_url(self) -> str | None:
        """Where Ray's dashboard of the run's cluster is; None where it has none."""
        find_address: Any = services.get_webui_url_from_internal_kv
        with _supervisor_at(read_address(self._run_dir)):
            address = find_address()
        return f"http://{address}" if address else None

    def workers(self) -> dict[str, str]:
        """What each of the run's actors says of itself now, by name."""
        asked: dict[str, Ref] = {}
        cluster = read_address(self._run_dir)
        with _supervisor_at(cluster):
            for name in _names_in(cluster.namespace):
                with suppress(ValueError):  # it has just ended
                    actor: Any = ray.get_actor(name, namespace=cluster.namespace)
                    asked[name] = actor.__ray_call__.remote(repr)
            return {name: _line(ref) for name, ref in asked.items()}

    def tier(self, name: str) -> None:
        """Ask for a tier: light, medium, heavy, auto, custom or one of the configuration's."""
        self._ask("tier", name)

    def pause(self, task: str | None = None) -> None:
        """Let a task rest, or every one; RunUnreachable names the tasks where there is no such."""
        self._ask("pause", task)

    def resume(self, task: str | None = None) -> None:
        """Let a paused task go on, or every one; one that was parked is tried again."""
        self._ask("resume", task)

    def change(self, settings: Mapping[str, Any], task: str | None = None) -> None:
        """Change live settings, such as `learner.learning_rate`, of a task or of all.

        RunUnreachable says which of them cannot be; then none has changed.
        """
        self._ask("change", task, dict(settings))

    def add(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        """Take a task into the run: the first task's settings, or others as in `tasks.TASK`.

        Raises:
          ConfigError: the settings, or the environment that they name, cannot be.
          AdmissionError: it does not fit this machine's memory; the message holds the numbers.
        """
        from rl_cluster.preparation import prepare_added  # imports torch

        added = prepare_added(self._run_dir, task, settings or {})
        self._ask("add", task, added)

    def remove(self, task: str) -> None:
        """Let a task save and leave the run; its files stay."""
        self._ask("remove", task)

    def rollback(self, task: str, version: int | None = None) -> int:
        """Send a fleet's rovers an earlier policy; None: the one before the newest.

        Returns:
          The new version that it is sent as.

        Raises:
          RunUnreachable: the task is no fleet, or there is no such policy; the message says which.
        """
        sent: int = self._ask("rollback", task, version)
        return sent

    def checkpoint(self, task: str | None = None) -> dict[str, str | None]:
        """Save a task now, or every one; task to its checkpoint's path, None where it failed."""
        paths: dict[str, str | None] = self._ask("checkpoint", task)
        return paths

    def stop(self) -> None:
        """Ask the run to save everything and end; it has when `summary.json` says so."""
        if not is_in_use(self._run_dir):
            raise not_running(self._run_dir)  # the request would end whoever goes on with it
        control = Control(self._run_dir)
        control.clear("leave")
        control.request("stop")

    def widget(self) -> ipywidgets.VBox:
        """A panel for Jupyter: live state, tier, pause and resume, live settings, games, stop.

        Raises:
          ModuleNotFoundError: the extra `notebook` is not installed.
          FileNotFoundError: the run has not written a summary yet.
        """
        from rl_cluster.notebook.panel import Panel

        return Panel(self, self._run_dir).box

    def _tier_names(self) -> list[str]:
        return [*load(self._run_dir / "config.yaml").load.tiers, AUTO, CUSTOM]

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What the supervisor, of the cluster that the run has now, answers."""
        with _supervisor_at(read_address(self._run_dir)) as supervisor:
            try:
                return read(getattr(supervisor, method).remote(*arguments), _ANSWER_TIMEOUT_S)
            except RayError as error:
                raise RunUnreachable(cause_of(error)) from error


def attach(run_dir: str | Path, wait_s: float = 0.0) -> RunHandle:
    """The handle of the live run in a directory.

    Args:
      run_dir: the run's.
      wait_s: longest to wait for a run to begin, to start, and to write its first summary; one that
        has ended is not waited for.

    Raises:
      RunDirectoryError: it is not running, is still starting, or this is no run.
    """
    path, deadline_s = Path(run_dir).expanduser().absolute(), time.monotonic() + wait_s
    while True:
        over = time.monotonic() > deadline_s
        try:
            read_address(path)
        except RunDirectoryError:
            # A job may take its time to begin.
            has_begun, is_held = (path / "config.yaml").exists(), is_in_use(path)
            if over and not (has_begun or is_held):
                raise RunDirectoryError(f"{path} {NO_RUN}") from None
            if over or (has_begun and not is_held):
                raise
        else:
            if over or has_reported(path):
                return RunHandle(path)
        time.sleep(_LOOK_S)


@contextmanager
def _supervisor_at(cluster: ClusterAddress) -> Iterator[Actor]:
    """A connection; where this process is connected already, its own.

    Raises:
      RunUnreachable: the cluster or the supervisor does not answer, or this process is connected
        to another cluster.
    """
    ours = not ray.is_initialized()
    if not ours:
        _check_connected_to(cluster)
    try:
        try:
            runtime.join(cluster)
            supervisor = ray.get_actor(names.SUPERVISOR, namespace=cluster.namespace)
        except (ConnectionError, ValueError, RayError) as error:
            raise RunUnreachable(
                f"the run {cluster.namespace} says that it is at {cluster.address}, but it does "
                f"not answer: {cause_of(error)}"
            ) from error
        yield supervisor
    finally:
        if ours:
            runtime.leave()


def _check_connected_to(cluster: ClusterAddress) -> None:
    # A run of the same name there would be steered instead.
    here = runtime.gcs_address()
    if here != cluster.address and _resolved(here) != _resolved(cluster.address):
        raise RunUnreachable(
            f"the run {cluster.namespace} is on the cluster at {cluster.address}, but this process "
            f"is connected to the one at {here}: call ray.shutdown() first, the run's handle "
            "connects by itself"
        )


def _resolved(address: str) -> tuple[str, str]:
    """Host, as a number where its name is known, and port."""
    host, _, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host), port
    except OSError:
        return host, port


def _names_in(namespace: str) -> list[str]:
    """Names of a run's actors; the connection may be of another namespace."""
    found: list[Any] = list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in found if each["namespace"] == namespace)


def _line(ref: Ref) -> str:
    try:
        return str(read(ref, _LINE_TIMEOUT_S))
    except RayError as error:
        return f"no answer: {cause_of(error)}"
