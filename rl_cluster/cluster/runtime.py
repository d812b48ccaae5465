"""Ray itself: how a run's cluster is started, joined, left and ended.

Invariant: a cluster of the run's own listens on loopback only, with Ray's token authentication, and
never spills replay to disk: what does not fit was refused by admission. It belongs to no process:
whoever started it may die, and it goes on until it is ended.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.usage import usage_lib
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.node import Node
from ray._private.parameter import RayParams

from rl_cluster.boot_journal import present_boot_id
from rl_cluster.config import ClusterConfig
from rl_cluster.control import RUN_MARK, ProcessId
from rl_cluster.run_directory import ClusterAddress, takes_a_file
from rl_cluster.signals import let_through

_log = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
DAEMONS = ("gcs_server", "raylet")
"""Processes of a cluster of the run's own that it cannot be without, as Ray names them."""
# Ray warns whenever its token authentication is on, which here it always is.
logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
# Threads of a parallel region that spin while they wait for each other starve every other process:
# on two shared cores an update took up to seven times as long.
_WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "0"}
_SYSTEM = {
    # Otherwise the control store grows by 3 KB with every call, up to 100,000 calls.
    "task_events_report_interval_ms": 0,
    "automatic_object_spilling_enabled": False,
    # Ray would give every worker niceness 15, and evaluation could not yield any further.
    "worker_niceness": 0,
    # A raylet ends itself when its agent, which imports much, takes longer: 15 s is less than a
    # busy host needs.
    "agent_register_timeout_ms": 60_000,
}


def start(config: ClusterConfig, namespace: str, object_store_bytes: int) -> ClusterAddress:
    """Start a cluster on this host that nobody owns."""
    _stay_on_loopback()
    setattr(services, "ConsolePopen", _OwnGroup)  # noqa: B010 - a type to mypy
    # It reads every log ten times a second, for a driver that does not ask for them.
    setattr(Node, "start_log_monitor", lambda self: None)  # noqa: B010
    if not config.dashboard:
        # Its server would start all the same, with nothing to serve, and all else waits for it.
        setattr(Node, "start_api_server", lambda self, **_: None)  # noqa: B010
    enable_token_auth_by_default()
    ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    _hide_token()
    usage_lib.set_usage_stats_enabled_via_env_var(False)
    os.environ |= _WORKER_ENVIRONMENT
    node = Node(
        RayParams(
            include_dashboard=config.dashboard,
            no_monitor=True,  # of an autoscaler
            dashboard_host=_LOOPBACK,
            object_store_memory=object_store_bytes,
            _system_config=_SYSTEM,  # type: ignore[arg-type] # its values are of many types
        ),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=False,
    )
    daemons = [ProcessId.of(node.all_processes[name][0].process.pid) for name in DAEMONS]
    return ClusterAddress(node.address, namespace, tuple(daemons))


def _hide_token() -> None:
    """Ray lets the umask decide who may read the token, and whoever can runs code as us."""
    token = Path.home() / ".ray" / "auth_token"
    try:
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)
    except FileNotFoundError:  # a variable of Ray's names another
        return
    except OSError as error:
        _log.warning("others can read %s: %s", token, error)


def has_room() -> bool:
    """Whether Ray's own files have room on this host."""
    parent_of_sessions: Any = get_default_system_temp_dir
    return takes_a_file(Path(parent_of_sessions()))


def join(cluster: ClusterAddress, run_dir: Path | None = None) -> None:
    """Connect to a live run's cluster; harmless where this process is connected already.

    Args:
      cluster: where.
      run_dir: marks the processes that this one starts there, on a cluster that is not the run's.
    """
    if cluster.address.startswith(_LOOPBACK):
        _stay_on_loopback()
    if not ray.is_initialized():
        # Ray does this by itself only for a cluster that it found by itself.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        ray.init(
            cluster.address,
            namespace=cluster.namespace,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env=_marked(run_dir) if run_dir and not cluster.daemons else None,
        )


def _marked(run_dir: Path) -> dict[str, Any]:
    return {"env_vars": _WORKER_ENVIRONMENT | {RUN_MARK: str(run_dir)}}


def gcs_address() -> str:
    """Address of the cluster that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def leave() -> None:
    """Disconnect."""
    ray.shutdown()


def end_processes(
    run_dir: Path, cluster: ClusterAddress | None = None, timeout_s: float = 10.0
) -> list[int]:
    """Kill every process of a run but this one.

    Args:
      run_dir: the run's directory.
      cluster: where it was last, if anywhere.
      timeout_s: longest that it may take.

    Returns:
      The numbers of those still there.
    """
    deadline_s = time.monotonic() + timeout_s
    # Who was found once is not lost sight of when its parent dies.
    found = processes_of(run_dir, cluster)
    while found and time.monotonic() < deadline_s:
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=0.5)  # reaps those that are this process's children
        found = {p for p in found | processes_of(run_dir, cluster) if _lives(p)}
    return [process.pid for process in found]


def processes_of(run_dir: Path, cluster: ClusterAddress | None = None) -> set[psutil.Process]:
    """Live processes of a run, this one left out.

    They carry its mark, descend from one that does, or are in the group of its cluster's raylet: a
    title that a process gives itself, as Ray's agents do, may lie where its mark was, and a raylet
    that died has no descendants.
    """
    leaders = {} if cluster is None else {daemon.pid: daemon for daemon in cluster.daemons}
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == str(run_dir):
                found.update([process, *process.children(recursive=True)])
            elif (leader := leaders.get(os.getpgid(process.pid))) and _leads_or_led(leader):
                found.add(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return {process for process in found if process.pid != os.getpid() and _lives(process)}


def _leads_or_led(daemon: ProcessId) -> bool:
    """Whether its number is that of its own process group, and not of a later process's."""
    try:
        return ProcessId.of(daemon.pid) == daemon
    except ProcessLookupError:
        return daemon.boot_id == present_boot_id()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class _OwnGroup(services.ConsolePopen):
    """Ray's processes in groups of their own: a signal to ours must not end them unsaved."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        prepare = options.pop("preexec_fn")

        def prepare_and_release() -> None:
            let_through()
            if prepare is not None:
                prepare()

        options |= {"process_group": 0, "preexec_fn": prepare_and_release}
        super().__init__(*arguments, **options)


def _stay_on_loopback() -> None:
    """Let Ray take 127.0.0.1 for this node's address, so that nothing listens beyond it.

    Ray replaces a loopback address that it is given by one that others can reach; this switch,
    which Ray sets on macOS, is the one that it obeys.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False
