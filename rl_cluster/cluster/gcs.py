"""What a cluster's control store (GCS) is asked.

Invariant: no question waits longer than it is given. Ray's own functions wait for as long as the
control store is away, and a supervisor that waits between two ticks is taken for dead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
import ray
from ray._common import network_utils
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from rl_cluster.cluster.actors import Actor

SOON_S = 0.5
"""What the supervisor can wait for between two ticks."""


class GcsSilent(TimeoutError):
    """There is no answer in time."""


class Node(NamedTuple):
    """A node that the control store believes to live."""

    node_id: str
    resources: dict[str, float]
    """All that it has; of memory and object store, bytes."""
    labels: dict[str, str]
    metrics_address: str
    """Host and port where it gives out figures."""


def live_nodes(timeout_s: float) -> list[Node]:
    """All nodes that live.

    Raises:
      GcsSilent: nobody says.
    """
    stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub
    messages: Any = gcs_service_pb2
    answer = _ask(stub, "GetAllNodeInfo", messages.GetAllNodeInfoRequest(), timeout_s)
    states: Any = gcs_pb2.GcsNodeInfo  # type: ignore[attr-defined]
    return [_node(info) for info in answer.node_info_list if info.state == states.ALIVE]


def _node(info: Any) -> Node:
    build_address: Any = network_utils.build_address  # type: ignore[attr-defined]
    metrics = build_address(info.node_manager_address, info.metrics_export_port)
    return Node(info.node_id.hex(), dict(info.resources_total), dict(info.labels), metrics)


def has_no_place(actor: Actor, timeout_s: float) -> bool:
    """Whether no node has taken an actor yet.

    One that a busy node has taken, and whose process has yet to start, counts as without, too.

    Raises:
      GcsSilent: nobody says.
    """
    stub: Any = gcs_service_pb2_grpc.ActorInfoGcsServiceStub
    messages: Any = gcs_service_pb2
    request = messages.GetActorInfoRequest(actor_id=actor._actor_id.binary())
    entry = _ask(stub, "GetActorInfo", request, timeout_s).actor_table_data
    states: Any = gcs_pb2.ActorTableData  # type: ignore[attr-defined]
    return bool(entry.state == states.PENDING_CREATION and not entry.pid)


def _ask(make_stub: Any, method: str, request: Any, timeout_s: float) -> Any:
    address = str(ray.get_runtime_context().gcs_address)
    # The environment may name a proxy, which is not for a cluster's own network.
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return getattr(make_stub(channel), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise GcsSilent(f"the control store at {address} says nothing: {error}") from error
