"""Figures of the host and of Ray's object store, as the supervisor's process sees them.

Invariant: reading them never disturbs a run; a process that ends while it is read counts as
nothing.
"""

from __future__ import annotations

import os
from typing import Any

import grpc  # type: ignore[import-untyped]
import psutil
import ray
from ray._common import network_utils
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

from rl_cluster.cluster.gcs import live_nodes
from rl_cluster.sensors import scarcest_memory

_ANSWER_S = 0.5
"""The supervisor waits for it between two ticks."""


def object_store_bytes() -> int | None:
    """Bytes in use in this node's object store; None where its node does not answer soon.

    A node answers when all of its workers have, so one that hangs holds the answer up. The GCS is
    not asked where the node is: its questions have no limit of time, and this process knows.
    """
    node: Any = ray._private.worker.global_worker.node
    build_address: Any = network_utils.build_address  # type: ignore[attr-defined]
    messages: Any = node_manager_pb2
    make_stub: Any = node_manager_pb2_grpc.NodeManagerServiceStub
    address = build_address(node.node_ip_address, node.node_manager_port)
    request = messages.GetNodeStatsRequest(include_memory_info=False)
    # It is on this host, and the environment may name a proxy.
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            stats = make_stub(channel).GetNodeStats(request, timeout=_ANSWER_S)
        except grpc.RpcError:
            return None
    return int(stats.store_stats.object_store_bytes_used)


def metrics_addresses() -> list[str]:
    """Where the cluster's nodes give their figures to Prometheus, in order.

    Raises:
      GcsSilent: nobody says.
    """
    return sorted(node.metrics_address for node in live_nodes(_ANSWER_S))


def run_memory_bytes() -> int:
    """Memory of Ray's processes and all workers on this node, the object store left out."""
    raylet = psutil.Process(os.getppid())
    return sum(_private_bytes(process) for process in [raylet, *raylet.children(recursive=True)])


def host_memory_used_bytes() -> int | None:
    """Memory in use on the host, or in the control group that has less left of its limit."""
    memory = scarcest_memory()
    return None if memory is None else memory.limit_bytes - memory.available_bytes


def _private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - memory.shared)
