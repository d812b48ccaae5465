"""Puts the supervisor of a run onto its cluster, and leaves.

Started by the keeper beside the cluster itself: what takes time, trying environments and measuring
bytes, happens while Ray starts. Invariant: the supervisor is detached, so this program's end
changes nothing; where it cannot be made, the reason is left in RUN/control/enlist.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from rl_cluster.checkpoint import CheckpointError
from rl_cluster.cluster import names, runtime, shared_store
from rl_cluster.cluster.actors import Actor, cause_of, end_named, read
from rl_cluster.cluster.placement import at_home, home_resource
from rl_cluster.cluster.run_plan import RunPlan, plan_of
from rl_cluster.cluster.supervisor_actor import SupervisorActor
from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import load
from rl_cluster.control import NO_ROOM, REFUSED, Control
from rl_cluster.preparation import prepare, with_added
from rl_cluster.promised_store import promised_bytes
from rl_cluster.run_directory import ClusterAddress, RunDirectory, read_cluster
from rl_cluster.supervision.admission import AdmissionError

_CLUSTER_TIMEOUT_S = 60.0


class NoNodeHere(RuntimeError):
    """The cluster has no node on this host, where the supervisor has to be."""


class NotAdmittedNow(RuntimeError):
    """A run that was admitted in its session is not any more."""


class NoRoomNow(NotAdmittedNow):
    """Others have taken the room that it had in the cluster's store."""


def main(argv: Sequence[str]) -> int:
    """Enlist the supervisor of the run in a directory, or dismiss all of its actors."""
    run_dir, dismisses = Path(argv[0]), "--dismiss" in argv[1:]
    return dismiss(run_dir) if dismisses else enlist(run_dir)


def dismiss(run_dir: Path) -> int:
    """Kill every actor of a run, on a cluster that others use, too; return an exit code."""
    cluster = read_cluster(run_dir)
    try:
        if cluster is None:
            return 0
        runtime.join(cluster)
        # The supervisor first: it would replace the others.
        end_named(sorted(list_named_actors(), key=lambda name: name != names.SUPERVISOR))
    except (ConnectionError, RayError) as error:
        print(f"not dismissed: {cause_of(error)}", file=sys.stderr)
        return 1
    finally:
        runtime.leave()
    return 0


def enlist(run_dir: Path) -> int:
    """Enlist the supervisor of the run in a directory; return an exit code."""
    control = Control(run_dir)
    try:
        added = (control.read("wishes") or {}).get("added", {})
        config = with_added(load(run_dir / "config.yaml"), added)
        if config.cluster.address == "local":
            plan = plan_of(prepare(config), run_dir, added)
            _join_cluster(run_dir)
        else:
            _join_cluster(run_dir)
            plan = _plan_there(config, run_dir, added)
        read(_supervisor_here(plan).health.remote(), _CLUSTER_TIMEOUT_S)
    except (AdmissionError, CheckpointError, ConfigError) as error:
        control.write("enlist", {"error": cause_of(error)})
        return REFUSED
    except (RayError, OSError, NoNodeHere, NotAdmittedNow) as error:  # the keeper tries again
        print(f"not enlisted: {cause_of(error)}", file=sys.stderr)
        control.write("enlist", {"error": cause_of(error)})
        return NO_ROOM if isinstance(error, NoRoomNow) else 1
    finally:
        runtime.leave()
    return 0


def _plan_there(config: RunConfig, run_dir: Path, added: Mapping[str, Any]) -> RunPlan:
    """Settle a run on the cluster of others that this process has joined, and claim its store.

    The claim comes last: it counts for nobody until there is a supervisor.

    Raises:
      AdmissionError: it does not fit, and has not fitted before in its session.
      NotAdmittedNow: it has.
    """
    control = Control(run_dir)
    session = control.read("session") or {}
    room = shared_store.room()
    had_bytes = max(session.get("most_claimed_bytes", 0), promised_bytes(control))
    had_room = "most_claimed_bytes" in session
    taken = room.claimed_bytes > 0 and room.free_bytes < had_bytes
    if had_room:  # others count on what it has not
        room = room._replace(free_bytes=min(room.free_bytes, had_bytes))
    try:
        prepared = prepare(config, store=room)
        plan = plan_of(prepared, run_dir, added)
        shared_store.claim(prepared.store_capacity_bytes)
    except AdmissionError as error:
        if had_room:
            raise (NoRoomNow if taken else NotAdmittedNow)(str(error)) from error
        raise
    claimed_bytes = prepared.store_capacity_bytes
    most_bytes = max(had_bytes, claimed_bytes) if had_room else claimed_bytes
    claims = {"object_store_bytes": claimed_bytes, "most_claimed_bytes": most_bytes}
    control.write("session", session | claims)
    return replace(plan, object_store_bytes=shared_store.store_bytes())


def _supervisor_here(plan: RunPlan) -> Actor:
    """The supervisor, made where there is none yet: on this host and no other.

    The keeper is here, and the two speak through the files of the run. While this host's node is
    away nothing is learned; where that takes longer than a supervisor may be silent, the keeper
    makes the run anew, which fails, and says why, as long as there is no node.

    Raises:
      NoNodeHere: the cluster has none here.
    """
    resources: Any = ray.cluster_resources
    here = home_resource()
    if here not in resources():
        raise NoNodeHere(
            f"the supervisor has to be on the host of its keeper, and the cluster at "
            f"{runtime.gcs_address()} has no {here}: start one here with `ray start --address=…`"
        )
    remote: Any = ray.remote(SupervisorActor)
    actor: Actor = remote.options(
        name=names.SUPERVISOR,
        num_cpus=0,
        **at_home(),
        # Where this host has several nodes: not that one again under which it has just died.
        scheduling_strategy="SPREAD",
        lifetime="detached",
        max_restarts=-1,
        get_if_exists=True,
        max_concurrency=8,
    ).remote(plan)
    return actor


def _join_cluster(run_dir: Path) -> None:
    """Wait for the keeper's cluster, and for its node to be known there.

    Raises:
      TimeoutError: it is not there, or has no node on this host.
    """
    deadline_s, failure = time.monotonic() + _CLUSTER_TIMEOUT_S, "it has not started"
    while True:
        cluster = read_cluster(run_dir)
        try:
            if cluster is not None:
                runtime.join(cluster, run_dir)
                break
        except ConnectionError as error:
            failure = f"{cause_of(error)}: it has to be up, and have a node on this host"
            runtime.leave()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no cluster within {_CLUSTER_TIMEOUT_S:.0f} s: {failure}")
        time.sleep(0.05)
    if not cluster.daemons:  # where `auto` led to
        address = runtime.gcs_address()
        cluster = ClusterAddress(address, cluster.namespace, ())
        RunDirectory(run_dir).write_address(cluster)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
