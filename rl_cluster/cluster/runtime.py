"""Ray itself: how a run's cluster is started, joined and left.

Invariant: a local cluster listens on loopback only, with Ray's token authentication, and never
spills replay to disk: what does not fit was refused by admission.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.node import Node

from rl_cluster.config import ClusterConfig
from rl_cluster.signals import let_through

_LOOPBACK = "127.0.0.1"
# Ray warns whenever its token authentication is on, which here it always is.
logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def start(config: ClusterConfig, namespace: str, object_store_bytes: int) -> str:
    """Start a local cluster, or join the one that the configuration names; return its address."""
    if config.address != "local":
        ray.init(config.address, namespace=namespace, log_to_driver=False)
        return str(ray.get_runtime_context().gcs_address)
    _stay_on_loopback()
    setattr(services, "ConsolePopen", _OwnGroup)  # noqa: B010 - a type to mypy
    # It reads every log ten times a second, for a driver that does not ask for them.
    setattr(Node, "start_log_monitor", lambda self: None)  # noqa: B010
    ray.init(
        address="local",
        namespace=namespace,
        include_dashboard=config.dashboard,
        dashboard_host=_LOOPBACK,
        object_store_memory=object_store_bytes,
        log_to_driver=False,
        logging_level=logging.WARNING,
        # Threads of a parallel region that spin while they wait for each other starve every other
        # process: on two shared cores an update took up to seven times as long.
        runtime_env={"env_vars": {"GOMP_SPINCOUNT": "0"}},
        _system_config={
            # Otherwise the control store grows by 3 KB with every call, up to 100,000 calls.
            "task_events_report_interval_ms": 0,
            "automatic_object_spilling_enabled": False,
            # Ray would give every worker niceness 15, and evaluation could not yield any further.
            "worker_niceness": 0,
        },
    )
    return str(ray.get_runtime_context().gcs_address)


def join(address: str, namespace: str) -> None:
    """Connect to a live run's cluster; harmless where this process is connected already."""
    if address.startswith(_LOOPBACK):
        _stay_on_loopback()
    if not ray.is_initialized():
        # Ray does this by itself only for a cluster that it found by itself.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        ray.init(address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)


def leave() -> None:
    """Disconnect; a local cluster ends with it."""
    ray.shutdown()


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
