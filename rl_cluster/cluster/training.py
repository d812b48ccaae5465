"""The driver of a run: prepares, starts the supervisor, watches, and leaves nothing behind.

Invariant: whichever way a run ends, learners were asked to save first, the summary says how it
ended, and every process that was started is gone when `train` returns.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.cluster import names, runtime
from rl_cluster.cluster.actors import Actor, Ref, cause_of, is_here, read, spawn
from rl_cluster.cluster.messages import RunClock
from rl_cluster.cluster.supervisor_actor import RunPlan, SupervisorActor
from rl_cluster.config import RunConfig
from rl_cluster.learner import checkpoint_schema
from rl_cluster.preparation import PreparedRun
from rl_cluster.run_directory import ClusterAddress, RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import Summary

_LOOK_S = 0.5
_SAVE_TIMEOUT_S = 6.0
_CALM_SAVE_TIMEOUT_S = 90.0


class RunFailed(RuntimeError):
    """The run ended without its supervisor; checkpoints up to then are whole."""


class Interrupted(RuntimeError):
    """Stopped before anything had been learned in this session; what was saved before stands."""


def train(
    requested: RunConfig,
    prepared: PreparedRun,
    directory: RunDirectory,
    stop: StopFlag,
    show: Callable[[Summary], None],
) -> Summary:
    """Run until done, stopped or failed; return the last summary.

    Args:
      requested: the configuration as given.
      prepared: what it became on this machine.
      directory: taken by the caller; released at the end.
      stop: ends the run, everything saved, once set.
      show: receives each new summary.

    Raises:
      CheckpointError: the run to resume is of another architecture, or all of it is torn.
      Interrupted: stopped while starting.
      RunFailed: the supervisor died or did not answer.
    """
    try:
        plan = _plan(prepared, directory)
        directory.write_configuration(requested, prepared.effective)
        _start_ray(prepared, directory, stop)
        supervisor = spawn(SupervisorActor, names.SUPERVISOR, plan, max_concurrency=8)
        return _watch(supervisor, stop, show)
    except RayError as error:
        directory.mark_failed()
        raise RunFailed(f"the supervisor died: {cause_of(error)}") from error
    finally:
        runtime.leave()
        directory.release()


def _start_ray(prepared: PreparedRun, directory: RunDirectory, stop: StopFlag) -> None:
    store_bytes = prepared.admission.object_store_bytes
    address = runtime.start(prepared.effective.config.cluster, directory.name, store_bytes)
    if stop:
        raise Interrupted
    directory.write_address(ClusterAddress(address, directory.name, os.getpid()))


def _watch(supervisor: Actor, stop: StopFlag, show: Callable[[Summary], None]) -> Summary:
    run: Ref = supervisor.run.remote()
    newest: Ref = supervisor.summary.remote()
    shown = False
    while not stop.wait(_LOOK_S) and not is_here(run):
        if is_here(newest):
            show(read(newest, _LOOK_S))
            shown, newest = True, supervisor.summary.remote()
    if not shown and not is_here(run):
        raise Interrupted
    if stop:
        supervisor.stop.remote()
    summary: Summary = read(run, _SAVE_TIMEOUT_S if stop else _CALM_SAVE_TIMEOUT_S)
    return summary


def _plan(prepared: PreparedRun, directory: RunDirectory) -> RunPlan:
    config = prepared.effective.config
    earlier = directory.earlier_summary()
    return RunPlan(
        directory.name,
        directory.path,
        config,
        prepared.specs,
        {
            task: _tracker_id(directory, task, checkpoint_schema(config.tasks[task].agent, spec))
            for task, spec in prepared.specs.items()
        },
        RunClock(time.time(), earlier["wall_s"] if earlier else 0.0),
        len(prepared.machine.gpus),
        earlier,
    )


def _tracker_id(directory: RunDirectory, task: str, schema: dict[str, Any]) -> str:
    """The identity at trackers that the newest checkpoint holds, or a new one."""
    store = CheckpointStore(directory.path / task / "checkpoints", keep=1)
    loaded = store.load_latest(schema)
    return str(loaded.checkpoint.state["tracker_id"]) if loaded else uuid.uuid4().hex[:12]
