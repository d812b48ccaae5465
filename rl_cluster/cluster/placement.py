"""Where actors run: files and blocks beside the keeper, environments anywhere.

Invariant: whoever reads or writes the run directory, learns, or holds replay's blocks, is on the
keeper's host. So no other host has to see that directory, and no other host's death takes
experience: only rollouts, which keep nothing, go elsewhere.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util import get_node_ip_address

from rl_cluster.config import ClusterConfig

_SHARE = 0.001
"""Of a host's resource, which is 1.0 in all."""


def home_resource() -> str:
    """The resource that Ray gives this host's nodes for their address.

    Not a node's id: a node that died comes back under another id, and Ray gives an actor up whose
    node's id is gone, but waits for a resource.
    """
    own_address: Any = get_node_ip_address
    return f"node:{own_address()}"


def at_home() -> dict[str, Any]:
    """Options of an actor on this host, where the supervisor is."""
    return {"resources": {home_resource(): _SHARE}}


def anywhere(config: ClusterConfig) -> dict[str, Any]:
    """Options of a rollout: on any node that has what the configuration asks for."""
    wanted = dict(config.rollout_resources)
    options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
    if "CPU" in wanted:
        options["num_cpus"] = wanted.pop("CPU")
    if wanted:
        options["resources"] = wanted
    if config.rollout_labels:
        options["label_selector"] = dict(config.rollout_labels)
    return options


def node_id() -> str:
    """The node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())
