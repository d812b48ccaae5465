"""The keeper's eye on GCS and raylet: whether they stand still though they are there.

A GCS that hangs stops nobody's training, so no silence of others tells of it; but whatever dies
from then on stays dead. Invariant: it does not connect to the cluster, as whoever is dies with it;
only a cluster of the run's own is watched, since the GCS of others may be away for a while.
"""

from __future__ import annotations

from typing import Any

import grpc  # type: ignore[import-untyped]
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from rl_cluster.cluster import runtime
from rl_cluster.run_directory import ClusterAddress
from rl_cluster.supervision.standstill import Standstill

_ASK_EVERY_S = 2.0
_ANSWER_S = 1.5
"""The keeper looks at nothing else meanwhile."""
_NO_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


class ClusterGuard:
    """Watches one cluster of a run's own."""

    def __init__(self, cluster: ClusterAddress) -> None:
        self.cluster = cluster
        self._standstill, self._ask_due_s = Standstill(), 0.0
        # The keeper need not be the one that started it, whose environment then has the token.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)

    def lost_because(self, now_s: float) -> str | None:
        """Look; return why it has to be made anew, None while it gets on."""
        if not self.cluster.daemons:
            return None
        answered = None
        if now_s >= self._ask_due_s:
            self._ask_due_s = now_s + _ASK_EVERY_S
            answered = gcs_answers(self.cluster.address, _ANSWER_S)
        daemons = zip(runtime.DAEMONS, self.cluster.daemons, strict=True)
        stopped = [f"{name} (process {daemon.pid})" for name, daemon in daemons if daemon.stopped]
        return self._standstill.lost_because(stopped, answered, now_s)


def gcs_answers(address: str, timeout_s: float) -> bool:
    """Whether a control store answers; a refusal is an answer, too."""
    messages: Any = gcs_service_pb2
    make_stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub
    # It is on this host, and the environment may name a proxy.
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            make_stub(channel).CheckAlive(messages.CheckAliveRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code() not in _NO_ANSWER
    return True
