"""The object store of a cluster that several runs share: what its node on this host has for a run.

Invariant: a run claims no more of that node's store than others have left when it looks. A claim is
kept in the cluster's control store, and counts as long as the run's supervisor is an actor there.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util import list_named_actors

from rl_cluster.cluster import names
from rl_cluster.cluster.gcs import live_nodes
from rl_cluster.cluster.placement import home_resource
from rl_cluster.preparation import StoreRoom
from rl_cluster.supervision.admission import AdmissionError

_CLAIMS = b"rl-cluster-store-claims"
_ANSWER_S = 10.0


def store_bytes() -> int:
    """All of the node's store."""
    return int(_most_here("object_store_memory"))


def _most_here(resource: str) -> float:
    """What Ray has of it on this host's node; on the one with most, where there are several."""
    here, nodes = home_resource(), live_nodes(_ANSWER_S)
    return max((n.resources.get(resource, 0) for n in nodes if here in n.resources), default=0)


def room() -> StoreRoom:
    """What other live runs have not claimed of it."""
    all_bytes, claims = store_bytes(), {run: _claimed_bytes(run) for run in _other_runs()}
    claimed_bytes = sum(claims.values())
    others = [run for run, claimed in claims.items() if claimed]
    beside = f", shared with {', '.join(others)}" if others else ""
    place = f"the store of the cluster's node here ({all_bytes / 1e9:.2f} GB{beside})"
    free_bytes = max(0, all_bytes - claimed_bytes)
    return StoreRoom(free_bytes, place, claimed_bytes, int(_most_here("GPU")))


def claim(needed_bytes: int) -> None:
    """Claim so much in all for the run whose namespace this process is in.

    Without it a store would overflow to disk, or fail.

    Raises:
      AdmissionError: names the sizes.
    """
    free_bytes, place, *_ = room()
    if free_bytes < needed_bytes:
        raise AdmissionError(
            f"the run needs {needed_bytes / 1e9:.2f} GB of object store, and {place} has "
            f"{free_bytes / 1e9:.2f} GB free: start that node with a larger "
            "--object-store-memory, or lower replay.capacity_transitions"
        )
    put: Any = internal_kv._internal_kv_put
    said = json.dumps({"home": home_resource(), "bytes": needed_bytes})
    put(_own_run().encode(), said.encode(), namespace=_CLAIMS)


def _claimed_bytes(run: str) -> int:
    """What a run claims of this host's node; it may be at home on another."""
    get: Any = internal_kv._internal_kv_get
    said = json.loads(get(run.encode(), namespace=_CLAIMS) or "{}")
    return int(said["bytes"]) if said.get("home") == home_resource() else 0


def _other_runs() -> list[str]:
    """Namespaces of this program's other live runs on the cluster."""
    found: list[Any] = list_named_actors(all_namespaces=True)
    runs = {each["namespace"] for each in found if each["name"] == names.SUPERVISOR}
    return sorted(runs - {_own_run()})


def _own_run() -> str:
    return str(ray.get_runtime_context().namespace)
