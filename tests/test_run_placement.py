"""Rollouts go where labels and resources say, on nodes that come later, too, and wait meanwhile."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from chaos.raylets import RayCluster
from chaos.support import CATCH, SETTINGS, ChaosRun

pytestmark = pytest.mark.long

POOL = "--labels=pool=cpu"
PLACES = (
    "cluster.rollout_labels.pool=cpu",
    "cluster.rollout_resources.CPU=2",  # all cores of a node of this cluster
    "defaults.rollout.actors=2",
)


@pytest.mark.timeout(400)
def test_rollouts_go_to_labelled_nodes_with_free_cores_and_wait_for_one_where_there_is_none(
    tmp_path: Path,
) -> None:
    with RayCluster(1) as cluster:
        first = cluster.add_node(POOL)
        address = f"cluster.address={cluster.address}"
        with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, *PLACES, address) as run:
            run.await_training()
            assert rollouts_on(run, first) == run.role("rollout")
            assert len(run.role("rollout")) == 1, "the head has cores, and not the label"
            second = cluster.add_node(POOL)
            run.until(lambda: len(rollouts_on(run, second)) == 1, 60, "the other rollout")
            assert len(rollouts_on(run, first)) == 1
            assert not run.incidents(kind="worker_failed"), run.story()
            run.end_well()


def rollouts_on(run: ChaosRun, raylet: psutil.Process) -> list[psutil.Process]:
    """Of all rollouts, those that a raylet started."""
    return [rollout for rollout in run.role("rollout") if rollout.ppid() == raylet.pid]
