"""Puts the supervisor of a run onto its cluster, and leaves.

Started by the keeper beside the cluster itself: what takes time, trying environments and measuring
bytes, happens while Ray starts. Invariant: the supervisor is detached, so this program's end
changes nothing; where it cannot be made, the reason is left in RUN/control/enlist.json.
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.cluster import names, runtime
from rl_cluster.cluster.actors import cause_of, spawn
from rl_cluster.cluster.run_plan import RunPlan
from rl_cluster.cluster.supervisor_actor import SupervisorActor
from rl_cluster.config import ConfigError
from rl_cluster.config_file import load
from rl_cluster.control import REFUSED, Control
from rl_cluster.learner import checkpoint_schema
from rl_cluster.preparation import PreparedRun, prepare, with_added
from rl_cluster.run_directory import ClusterAddress, RunDirectory, read_cluster
from rl_cluster.supervision.admission import AdmissionError

_CLUSTER_TIMEOUT_S = 60.0


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
        found = sorted(list_named_actors(), key=lambda name: name != names.SUPERVISOR)
        for name in found:
            with contextlib.suppress(ValueError):  # it has gone by itself
                ray.kill(ray.get_actor(name))
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
        wishes = control.read("wishes") or {}
        config = with_added(load(run_dir / "config.yaml"), wishes.get("added", {}))
        prepared = prepare(config)
        plan = _plan(prepared, RunDirectory(run_dir))
        _join_cluster(run_dir)
        spawn(SupervisorActor, names.SUPERVISOR, plan, max_concurrency=8, restarted_by_ray=True)
        actor = ray.get_actor(names.SUPERVISOR)
        ray.get(actor.health.remote(), timeout=_CLUSTER_TIMEOUT_S)
    except (AdmissionError, CheckpointError, ConfigError) as error:
        control.write("enlist", {"error": cause_of(error)})
        return REFUSED
    except (RayError, TimeoutError) as error:  # the keeper tries again
        print(f"not enlisted: {cause_of(error)}", file=sys.stderr)
        return 1
    finally:
        runtime.leave()
    return 0


def _join_cluster(run_dir: Path) -> None:
    """Wait for the keeper's cluster, and for its node to be known there."""
    deadline_s = time.monotonic() + _CLUSTER_TIMEOUT_S
    while True:
        cluster = read_cluster(run_dir)
        try:
            if cluster is not None:
                runtime.join(cluster, run_dir)
                break
        except ConnectionError:
            runtime.leave()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no cluster within {_CLUSTER_TIMEOUT_S:.0f} s")
        time.sleep(0.05)
    if not cluster.daemons:  # where `auto` led to
        address = runtime.gcs_address()
        RunDirectory(run_dir).write_address(ClusterAddress(address, cluster.namespace, ()))


def _plan(prepared: PreparedRun, directory: RunDirectory) -> RunPlan:
    config = prepared.effective.config
    return RunPlan(
        name=directory.name,
        run_dir=directory.path,
        effective=prepared.effective,
        specs=prepared.specs,
        tracker_ids={
            task: _tracker_id(directory, task, checkpoint_schema(config.tasks[task].agent, spec))
            for task, spec in prepared.specs.items()
        },
        machine=prepared.machine,
        most_games=prepared.most_games,
        object_store_bytes=prepared.store_capacity_bytes,
    )


def _tracker_id(directory: RunDirectory, task: str, schema: dict[str, Any]) -> str:
    """The identity at trackers that the newest checkpoint holds, or a new one."""
    store = CheckpointStore(directory.path / task / "checkpoints", keep=1)
    loaded = store.load_latest(schema)
    return str(loaded.checkpoint.state["tracker_id"]) if loaded else uuid.uuid4().hex[:12]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
