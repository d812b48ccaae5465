"""Nodes that die, or freeze and thaw; a control store that is killed or frozen.

What holds: what was lost is replaced and training goes on by itself; whoever thaws beside its
replacement writes nothing more and ends; nobody runs twice. On a cluster that others own, several
raylets on this host share one disk, and Ray spreads the workers over them as it likes.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from live_run import command

from chaos.counts import count, only_in_full
from chaos.figures import record_figure, record_spread
from chaos.raylets import QUICK_HEALTH_CHECKS, RayCluster, is_gone, node_of, signal_all
from chaos.support import (
    CATCH,
    SETTINGS,
    WORKERS,
    ChaosRun,
    await_discovery,
    await_recovery,
    chaos_run,
    stale_writes,
)
from rl_cluster.replay.journal_segments import RefusedRecord, list_segments, newest_first
from rl_cluster.telemetry.summary import read_summary

pytestmark = pytest.mark.chaos

ROLES = (*WORKERS, "supervisor")
KEEP_ALL = "defaults.checkpoint.keep=100000"
"""So that no stale write is cleared away before it is looked for."""
COUNTERS = ("learner_updates", "env_steps", "policy_version")
FROZEN_S = 60.0
BESIDE_S = 10.0
"""Workers thaw so long before their raylet, which ends them as soon as it hears that it is dead."""
KILLS = 6
"""Of a supervisor that might come back on either of two hosts."""
ELSEWHERE = "127.0.0.2"
AWAY_S = 10.0
"""Without a control store; raylets give it up after 60 s."""


@contextlib.contextmanager
def run_on(cluster: RayCluster, tmp_path: Path) -> Iterator[ChaosRun]:
    """A run that trains on a cluster of others."""
    address = f"cluster.address={cluster.address}"
    with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, KEEP_ALL, address) as run:
        run.await_training()
        yield run


@only_in_full("a cluster of three nodes")
@pytest.mark.timeout(1800)
def test_what_a_dead_node_took_is_replaced(tmp_path: Path) -> None:
    victims = count(("replay", "learner", "supervisor", "weights", "rollout"), ("learner",))
    recovery_s, lost_roles = [], []
    with RayCluster(count(3, 2), QUICK_HEALTH_CHECKS) as cluster, run_on(cluster, tmp_path) as run:
        for role in victims:
            node = node_of(node_with(role, cluster, run))
            lost = roles_of(node, run)
            lost_roles.append(len(lost))
            died_s = time.time()
            signal_all(node, signal.SIGKILL)
            recovery_s.append(await_replacement(run, lost, node, died_s) - died_s)
            if role != victims[-1]:
                cluster.add_node()
        lost_s = run.end_well()
        check_journal(run.run_dir / "Catch" / "replay")
    row = "kill -9 of a raylet and all its workers"
    record_spread(row, "until all works again", recovery_s, "s")
    record_figure(row, "of the run's six processes lost, mean", _mean(lost_roles), "processes")
    record_figure(row, "most work lost", lost_s, "s")


@only_in_full("several raylets, each frozen until it is replaced")
@pytest.mark.timeout(1800)
def test_a_node_that_thaws_beside_its_replacement_writes_nothing(tmp_path: Path) -> None:
    row = "SIGSTOP of a raylet and all its workers, SIGCONT after their replacement"
    victims = ("replay", "learner", "supervisor", "weights", "evaluator")
    recovery_s, ended_s = [], []
    with RayCluster(3, QUICK_HEALTH_CHECKS) as cluster, run_on(cluster, tmp_path) as run:
        for role in victims:
            node = node_of(node_with(role, cluster, run))
            lost = roles_of(node, run)
            frozen_s = time.time()
            signal_all(reversed(node), signal.SIGSTOP)
            recovery_s.append(await_replacement(run, lost, node, frozen_s) - frozen_s)
            heirs = {name: pids(run, name, node) for name in ROLES}
            ended_s.append(_thaw(run, node))
            assert {name: pids(run, name) for name in ROLES} == heirs, run.story()
            run.await_rise(COUNTERS, time.time())
            if role != victims[-1]:
                cluster.add_node()
        lost_s = run.end_well()
        check_nothing_stale(row, run.run_dir)
    record_spread(row, "until all works again", recovery_s, "s")
    record_spread(row, "until the old ones have ended, after their raylet's thaw", ended_s, "s")
    record_figure(row, "most work lost", lost_s, "s")


def _thaw(run: ChaosRun, node: Sequence[psutil.Process]) -> float:
    """Workers first; return how long the old ones lived on once their raylet had thawed, s."""
    *workers, raylet = node
    signal_all(workers, signal.SIGCONT)
    time.sleep(BESIDE_S)
    thawed_s = time.time()
    signal_all([raylet], signal.SIGCONT)
    run.until(lambda: all(map(is_gone, node)), 120, "the end of whoever was replaced")
    return time.time() - thawed_s


@only_in_full("another cluster; test_chaos_kills has one death of the control store")
@pytest.mark.timeout(1800)
def test_a_control_store_without_a_store_is_replaced_with_its_cluster(tmp_path: Path) -> None:
    seconds = []
    with chaos_run(tmp_path) as run:
        for _ in range(4):  # the keeper ends a run that lost its cluster more often in ten minutes
            victim, killed_s = run.the("gcs_server"), time.time()
            run.kill(victim)
            seconds.append(await_recovery(run, "gcs_server", victim.pid, killed_s) - killed_s)
            run.await_training()
        check_alone(run, (*ROLES, "keeper", "raylet", "gcs_server"))
        lost_s = run.end_well()
    row = "kill -9 of the control store, without a store"
    record_spread(row, "until updates and steps rise again", seconds, "s")
    record_figure(row, "most work lost", lost_s, "s")


@only_in_full("a cluster with RocksDB")
@pytest.mark.timeout(1800)
def test_a_control_store_with_a_store_comes_back_and_nobody_restarts(tmp_path: Path) -> None:
    seconds, updates_away = [], []
    with RayCluster(1, keeps_state=True) as cluster, run_on(cluster, tmp_path) as run:
        before = {name: pids(run, name) for name in ROLES}
        for _ in range(3):
            gcs = cluster.gcs()
            argv, saved = gcs.cmdline(), newest_save(run)
            signal_all([gcs], signal.SIGKILL)
            time.sleep(AWAY_S)
            updates_away.append(newest_save(run) - saved)
            assert updates_away[-1] > 0, f"training stopped\n{run.story()}"
            back_s = time.time()
            cluster.restart_gcs(gcs, argv)
            seconds.append(run.await_rise(COUNTERS, back_s) - back_s)
            assert {name: pids(run, name) for name in ROLES} == before, run.story()
        for lever in ("pause", "resume"):
            pulled = command(lever, run.run_dir)
            assert pulled.returncode == 0, pulled.stderr
        assert not run.incidents(kind="worker_failed") and not run.incidents(kind="cluster_lost")
        lost_s = run.end_well()
    row = f"kill -9 of the control store, with a store; back after {AWAY_S:.0f} s"
    record_spread(row, "until figures rise again", seconds, "s")
    record_spread(row, "updates saved while it was away", updates_away, "updates")
    record_figure(row, "workers restarted", 0, "workers")
    record_figure(row, "most work lost", lost_s, "s")


@only_in_full("a cluster with RocksDB")
@pytest.mark.timeout(600)
def test_a_run_that_was_stopped_while_its_cluster_was_away_does_not_come_back_with_it(
    tmp_path: Path,
) -> None:
    with RayCluster(1, keeps_state=True) as cluster, run_on(cluster, tmp_path) as run:
        gcs = cluster.gcs()
        signal_all([gcs], signal.SIGSTOP)
        stopped = command("stop", run.run_dir)
        assert stopped.returncode == 0, stopped.stderr
        summary, saved = read_summary(run.run_dir), newest_save(run)
        assert summary["state"] == "interrupted"
        signal_all([gcs], signal.SIGCONT)
        time.sleep(2 * BESIDE_S)
        run.until(lambda: not any(map(run.role, ROLES)), 60, "the end of all that came back")
        time.sleep(BESIDE_S)
        assert not any(map(run.role, ROLES)), run.story()
        assert (read_summary(run.run_dir), newest_save(run)) == (summary, saved)


@only_in_full("a cluster with RocksDB, and one of the run's own")
@pytest.mark.timeout(600)
def test_a_session_that_comes_back_after_the_run_has_gone_on_elsewhere_leaves(
    tmp_path: Path,
) -> None:
    row = "SIGSTOP of others' control store during `stop`, SIGCONT in a later session"
    patient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    with RayCluster(1, patient, keeps_state=True) as cluster, run_on(cluster, tmp_path) as run:
        gcs = cluster.gcs()
        signal_all([gcs], signal.SIGSTOP)
        stopped = command("stop", run.run_dir)
        assert stopped.returncode == 0, stopped.stderr
        with ChaosRun(CATCH, run.run_dir, *SETTINGS, KEEP_ALL, resume=True) as again:
            again.await_rise(COUNTERS, time.time())
            again.until(lambda: again.role("evaluator"), 60, "the evaluator")
            alone = {role: again.role(role) for role in ROLES}
            thawed_s = time.time()
            signal_all([gcs], signal.SIGCONT)
            again.until(lambda: "they leave" in logs_of(cluster), 90, "a supervisor that leaves")
            again.until(lambda: {r: again.role(r) for r in ROLES} == alone, 60, "the others' end")
            record_figure(
                row, "until those of before had come and gone", time.time() - thawed_s, "s"
            )
            time.sleep(BESIDE_S)
            assert {role: again.role(role) for role in ROLES} == alone, again.story()
            again.await_rise(COUNTERS, time.time())
            again.end_well()
        check_nothing_stale(row, run.run_dir)


def logs_of(cluster: RayCluster) -> str:
    """What its workers' processes, the dead ones included, wrote."""
    written = (cluster.path / "session_latest" / "logs").glob("worker-*.err")
    return "\n".join(path.read_text(errors="replace") for path in written)


@only_in_full("a minute frozen")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "roles", [("gcs_server",), ("raylet",), ("gcs_server", "raylet")], ids="+".join
)
def test_a_cluster_that_freezes_and_thaws_does_not_run_twice(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    row = f"SIGSTOP of {'+'.join(roles)} for {FROZEN_S:.0f} s, SIGCONT"
    with chaos_run(tmp_path, KEEP_ALL) as run:
        victims, frozen_s = [run.the(role) for role in roles], time.time()
        signal_all(victims, signal.SIGSTOP)
        found_s = await_discovery(run, roles[0], frozen_s)
        rise_s = run.await_rise(COUNTERS, found_s)
        time.sleep(max(0.0, frozen_s + FROZEN_S - time.time()))
        signal_all(victims, signal.SIGCONT)
        time.sleep(BESIDE_S)
        check_alone(run, (*ROLES, "keeper", "raylet", "gcs_server"))
        run.await_rise(COUNTERS, time.time())
        replaced = len(run.incidents(frozen_s, "cluster_lost"))
        lost_s = run.end_well()
        check_nothing_stale(row, run.run_dir)
    record_figure(row, "until found", found_s - frozen_s, "s")
    record_figure(row, "until updates, steps and versions rise again", rise_s - frozen_s, "s")
    record_figure(row, "clusters replaced", replaced, "clusters")
    record_figure(row, "most work lost", lost_s, "s")


class TwoHosts(RayCluster):
    """A cluster whose second raylet has another address, as on another host."""

    def __enter__(self) -> TwoHosts:
        super().__enter__()
        try:
            self._start(f"--address={self.address}", f"--node-ip-address={ELSEWHERE}")
        except BaseException:
            self.__exit__()
            raise
        return self


@only_in_full("a cluster of two hosts")
@pytest.mark.timeout(900)
def test_the_supervisor_stays_on_the_host_of_its_keeper(tmp_path: Path) -> None:
    """Where it would find neither the keeper's files nor the run's, it is never started."""
    with TwoHosts(1) as cluster, run_on(cluster, tmp_path) as run:
        (elsewhere,) = cluster.nodes_beside_head()
        for _ in range(KILLS):
            victim, killed_s = run.the("supervisor"), time.time()
            assert victim not in elsewhere.children(recursive=True), run.story()
            run.kill(victim)
            await_recovery(run, "supervisor", victim.pid, killed_s)
        assert run.the("supervisor") not in elsewhere.children(recursive=True), run.story()
        run.end_well()


def node_with(role: str, cluster: RayCluster, run: ChaosRun) -> psutil.Process:
    """A raylet beside the head's that a role is played on; it is moved off the head by kills."""
    while True:
        actor = run.the(role)
        for raylet in cluster.nodes_beside_head():
            if actor in raylet.children(recursive=True):
                return raylet
        killed_s = time.time()
        run.kill(actor)
        await_recovery(run, role, actor.pid, killed_s)


def roles_of(node: Sequence[psutil.Process], run: ChaosRun) -> list[str]:
    """The roles that are played on a node."""
    return [role for role in ROLES if set(run.role(role)) & set(node)]


def await_replacement(
    run: ChaosRun, lost: Sequence[str], node: Sequence[psutil.Process], since_s: float
) -> float:
    """Wait until others play the lost roles, and all works again; return when, unix s."""
    for role in lost:
        run.until(lambda role=role: pids(run, role, node), 120, f"another {role}")  # type: ignore[misc]
    rise_s = run.await_rise(COUNTERS, time.time())
    if "evaluator" in lost:
        await_recovery(run, "evaluator", 0, since_s)
    return rise_s


def pids(run: ChaosRun, role: str, without: Sequence[psutil.Process] = ()) -> list[int]:
    """Who plays a role, some left out."""
    return [process.pid for process in run.role(role) if process not in without]


def check_alone(run: ChaosRun, roles: Sequence[str]) -> None:
    """Every role is played once, as soon as replacements are over."""
    for role in roles:
        run.the(role)


def newest_save(run: ChaosRun) -> int:
    """Updates that the newest checkpoint holds; known without the control store."""
    return int((run.run_dir / "Catch" / "checkpoints" / "latest").read_text().split("-")[0])


def check_nothing_stale(row: str, run_dir: Path) -> None:
    """Epochs and versions of what is on disk only grow, and each block was written once."""
    stale = stale_writes(run_dir / "Catch")
    record_figure(row, "stale writes", stale, "writes")
    assert stale == 0
    check_journal(run_dir / "Catch" / "replay")
    names = [path.name for path in (run_dir / "Catch").rglob("*") if ".tmp" in path.name]
    assert not names, names


def check_journal(journal: Path) -> None:
    """Block ids fall from each record to the next, and none is damaged."""
    found = list(newest_first(list_segments(journal)))
    assert found and not [each for each in found if isinstance(each, RefusedRecord)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
