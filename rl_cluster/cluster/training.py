"""The driver of a run: prepares, starts the supervisor, watches, and leaves nothing behind.

Invariant: whichever way a run ends, learners were asked to save first, the summary says how it
ended, and every process that was started is gone when `train` returns.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

from ray.exceptions import RayError

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.cluster import names, runtime
from rl_cluster.cluster.actors import Actor, Ref, is_here, read, spawn
from rl_cluster.cluster.messages import RunClock
from rl_cluster.cluster.supervisor_actor import RunPlan, SupervisorActor
from rl_cluster.config import RunConfig
from rl_cluster.preparation import PreparedRun
from rl_cluster.run_directory import ClusterAddress, RunDirectory
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import Summary

_LOOK_S = 0.5
_ANSWER_TIMEOUT_S = 60.0
_SAVE_TIMEOUT_S = 7.0


class RunFailed(RuntimeError):
    """The run ended without its supervisor; checkpoints up to then are whole."""


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
      directory: taken by the caller.
      stop: ends the run, everything saved, once set.
      show: receives each new summary.

    Raises:
      RunFailed: the supervisor died.
    """
    directory.write_configuration(requested, prepared.effective)
    plan = _plan(prepared, directory)
    config = prepared.effective.config
    try:
        address = runtime.start(
            config.cluster, directory.name, prepared.admission.object_store_bytes
        )
        stop.install()  # Ray took SIGTERM when it started
        supervisor = spawn(SupervisorActor, names.SUPERVISOR, plan, max_concurrency=8)
        directory.write_address(ClusterAddress(address, directory.name, os.getpid()))
        return _watch(supervisor, stop, show)
    except RayError as error:
        raise RunFailed(f"the supervisor died: {error}") from error
    finally:
        runtime.leave()
        directory.release()


def _watch(supervisor: Actor, stop: StopFlag, show: Callable[[Summary], None]) -> Summary:
    run: Ref = supervisor.run.remote()
    while not stop.wait(_LOOK_S):
        if is_here(run):
            break
        show(read(supervisor.summary.remote(), _ANSWER_TIMEOUT_S))
    else:
        supervisor.stop.remote()
    summary: Summary = read(run, _SAVE_TIMEOUT_S)
    return summary


def _plan(prepared: PreparedRun, directory: RunDirectory) -> RunPlan:
    config = prepared.effective.config
    return RunPlan(
        directory.name,
        directory.path,
        config,
        prepared.specs,
        {task: _tracker_id(directory, task) for task in config.tasks},
        RunClock(time.time(), directory.earlier_wall_s()),
        len(prepared.machine.gpus),
    )


def _tracker_id(directory: RunDirectory, task: str) -> str:
    """The identity at trackers that the newest checkpoint holds, or a new one."""
    loaded = CheckpointStore(directory.path / task / "checkpoints", keep=1).load_latest()
    return str(loaded.checkpoint.state["tracker_id"]) if loaded else uuid.uuid4().hex[:12]
