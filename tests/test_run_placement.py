"""Rollouts go where labels and resources say, on nodes that come later, too, and wait meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from chaos.raylets import RayCluster
from chaos.support import CATCH, SETTINGS, ChaosRun
from live_run import lines

from rl_cluster.cluster.placement import MOVE_PERIOD_S

pytestmark = pytest.mark.long

POOL = "--labels=pool=cpu"
PLACES = (
    "cluster.rollout_labels.pool=cpu",
    "cluster.rollout_resources.CPU=2",  # all cores of a node of this cluster
    "defaults.rollout.actors=2",
    "supervisor.starting_timeout_s=30",
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
            run.until(lambda: run.incidents(kind="worker_waits"), 60, "that one waits is said")
            time.sleep(30)
            second = cluster.add_node(POOL)
            run.until(lambda: len(rollouts_on(run, second)) == 1, 60, "the other rollout")
            assert len(rollouts_on(run, first)) == 1
            assert not run.incidents(kind="worker_failed"), run.story()
            run.end_well()


@pytest.mark.timeout(400)
def test_rollouts_are_made_where_there_are_fewest_and_one_moves_to_a_node_that_comes_later(
    tmp_path: Path,
) -> None:
    with RayCluster(2) as cluster:
        address = f"cluster.address={cluster.address}"
        rollouts = "defaults.rollout.actors=4"
        with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, rollouts, address) as run:
            run.await_training()
            (worker,) = cluster.nodes_beside_head()
            run.until(lambda: len(run.role("rollout")) == 4, 60, "four rollouts")
            assert len(rollouts_on(run, worker)) == 2
            assert not run.incidents(kind="rollout_moved"), run.story()
            late = cluster.add_node()
            run.until(lambda: len(rollouts_on(run, late)) == 1, 60, "a rollout on the late node")
            time.sleep(2 * MOVE_PERIOD_S)
            run.until(what_crosses_the_network_is_shown(run, nodes=3), 60, "what crosses it")
            assert len(run.incidents(kind="rollout_moved")) == 1, run.story()
            run.end_well()


@pytest.mark.timeout(600)
def test_runs_of_one_name_share_a_cluster_and_its_store_and_one_too_many_is_refused(
    tmp_path: Path,
) -> None:
    with RayCluster(1) as cluster:
        cluster.add_node("--object-store-memory=800000000")
        settings = *SETTINGS, f"cluster.address={cluster.address}"
        with (
            ChaosRun(CATCH, tmp_path / "mine" / "catch", *settings) as mine,
            ChaosRun(CATCH, tmp_path / "yours" / "catch", *settings) as yours,
        ):
            mine.await_training()
            yours.await_training()
            with ChaosRun(CATCH, tmp_path / "third" / "catch", *settings) as third:
                assert third.process.wait(120) == 1, third.log()
                assert "object store" in third.log() and "shared with catch-" in third.log()
            yours.end_well()
            before = mine.updates()
            mine.until(lambda: mine.updates() > before, 60, "training after the end of another")
            assert not mine.incidents(kind="cluster_lost"), mine.story()
            mine.end_well()


def what_crosses_the_network_is_shown(run: ChaosRun, nodes: int) -> Callable[[], bool]:
    """In the summary and in the rows of metrics: less of blocks than they hold, and weights."""

    def look() -> bool:
        network = run.summary()["tasks"]["Catch"].get("network", {})
        row = [row for row in lines(run.run_dir / "metrics.jsonl") if row["task"]][-1]
        for rates in (network, {key.removeprefix("network_"): row[key] for key in row}):
            blocks, unpacked, weights = (
                rates.get(f"{name}_bytes_per_s") or 0 for name in ("block", "unpacked", "weights")
            )
            if not (rates.get("nodes") == nodes and 0 < blocks < unpacked and weights > 0):
                return False
        return True

    return look


def rollouts_on(run: ChaosRun, raylet: psutil.Process) -> list[psutil.Process]:
    """Of all rollouts, those that a raylet started."""
    return [rollout for rollout in run.role("rollout") if rollout.ppid() == raylet.pid]
