"""The driver of a run: prepares, hands the run to its keeper, shows it, and asks it to stop.

Invariant: the run belongs to its keeper. This process reads files and writes one request; its
death, or its terminal's, changes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Callable

from rl_cluster.cluster.keeper import launch
from rl_cluster.cluster.stopping import HEIR_S, LOOK_S
from rl_cluster.config import RunConfig
from rl_cluster.control import Control
from rl_cluster.preparation import PreparedRun, prepare, with_added
from rl_cluster.run_directory import RunDirectory, is_in_use
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import Summary, read_summary
from rl_cluster.telemetry.tracker_process import wandb_environment


class RunFailed(RuntimeError):
    """The run ended without being complete; checkpoints up to then are whole."""


class Interrupted(RuntimeError):
    """Stopped before anything had been learned in this session; what was saved before stands."""


def with_cluster_found(config: RunConfig) -> RunConfig:
    """Let `cluster.address: auto` be what RAY_ADDRESS says: in a job of Ray, the job's cluster.

    Keepers go on without that variable, and would take whichever cluster this host has.
    """
    address = os.environ.get("RAY_ADDRESS")
    if config.cluster.address != "auto" or not address:
        return config
    cluster = dataclasses.replace(config.cluster, address=address)
    return dataclasses.replace(config, cluster=cluster)


def start(requested: RunConfig, prepared: PreparedRun, directory: RunDirectory) -> None:
    """Begin a session: write down what was asked for, and hand the directory to a keeper.

    Args:
      requested: the configuration as given.
      prepared: what it became on this machine.
      directory: taken by the caller.
    """
    control = Control(directory.path)
    for old in ("stop", "leave", "recycled"):
        control.clear(old)
    for old in ("end", "ended", "enlist", "keeper"):
        control.forget(old)
    if directory.is_other(requested):
        control.forget("wishes")  # what was changed live was changed from another configuration
    elif added := (control.read("wishes") or {}).get("added"):
        prepared = prepare(with_added(requested, added))
    directory.write_configuration(requested, prepared.effective)
    earlier = directory.earlier_summary()
    control.write(
        "session",
        {
            "id": uuid.uuid4().hex,
            "began_at": time.time(),
            "wall_before_s": earlier["wall_s"] if earlier else 0.0,
            "object_store_bytes": prepared.store_capacity_bytes,
            "wandb": wandb_environment(),
        },
    )
    directory.forget_address()
    launch(directory.path, directory.lock_fd)
    directory.release()


def watch(directory: RunDirectory, stop: StopFlag, show: Callable[[Summary], None]) -> Summary:
    """Show a run that was started until it is over; return its last summary.

    Args:
      directory: the run's.
      stop: asks the run to save everything and end, once set.
      show: receives each new summary.

    Raises:
      Interrupted: stopped while starting.
      RunFailed: it could not be started, or its processes are gone.
    """
    control, started_s = Control(directory.path), time.time()
    alone_s: float | None = None
    while True:
        if stop.wait(LOOK_S):
            control.request("stop")
            time.sleep(LOOK_S)  # a set flag does not wait
        summary = directory.earlier_summary()
        if summary is not None and summary["updated_at"] >= started_s - LOOK_S:
            show(summary)
        if is_in_use(directory.path):
            alone_s = None
        elif control.read("ended") is not None:
            return _last_summary(directory, control)
        elif alone_s is None:
            alone_s = time.monotonic()
        elif time.monotonic() - alone_s > HEIR_S:
            raise RunFailed(f"the processes of the run are gone; see {directory.path}/keeper.log")


def _last_summary(directory: RunDirectory, control: Control) -> Summary:
    ended = control.read("ended") or {}
    if ended["state"] == "failed" and ended["reason"]:
        raise RunFailed(ended["reason"])
    try:
        summary = read_summary(directory.path)
    except FileNotFoundError:
        raise Interrupted from None
    if ended["state"] == "interrupted" != summary["state"]:  # it tells of the session before
        raise Interrupted
    return summary
