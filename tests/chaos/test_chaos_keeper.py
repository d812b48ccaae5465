"""What the keeper does where its cluster neither works nor dies, and where it cannot write.

What holds: it finds a cluster that hangs, gives up none that only is slow, makes another without
room on the disk, lives on through all of it, and makes no more clusters than it should.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from small_disk import small_disk

from chaos.counts import count, only_in_full
from chaos.figures import record_figure
from chaos.raylets import is_gone
from chaos.support import ChaosRun, await_discovery, await_recovery, chaos_run
from chaos.test_chaos_files import DISK_KIB, FULL_DISK, kept_full
from rl_cluster.control import Control
from rl_cluster.run_directory import read_cluster

pytestmark = pytest.mark.chaos

COUNTERS = ("learner_updates", "env_steps")
FULL_S = count(80.0, 5.0)
"""Longer than the program waits that enlists the supervisor."""
LOADED_S = 90.0
BUSY_PROCESSES = 10 * multiprocessing.cpu_count()
DUE_S = (0.0, 20.0, 60.0, 140.0)
"""When each of the clusters that are asked for without a break may be made at the earliest."""

# Stops every thread of a process as a debugger does, so that no signal is to be seen (ptrace(2)).
HOLD = """
import ctypes, os, sys, time
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
for request in (0x4206, 0x4207):  # PTRACE_SEIZE, PTRACE_INTERRUPT
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        if libc.ptrace(request, ctypes.c_long(thread), None, None):
            sys.exit(os.strerror(ctypes.get_errno()))
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def held(process: psutil.Process) -> Iterator[None]:
    """A process that hangs, and is not stopped by a signal."""
    command = [sys.executable, "-c", HOLD, str(process.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as debugger:
        assert debugger.stdout is not None
        try:
            if debugger.stdout.readline() != "held\n":
                pytest.skip("no process may be traced here")
            yield
        finally:
            debugger.kill()


@only_in_full("test_chaos_cluster has those that are stopped")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("role", ["gcs_server", "raylet"])
def test_a_cluster_that_hangs_is_found_though_no_signal_stopped_it(
    tmp_path: Path, role: str
) -> None:
    with chaos_run(tmp_path) as run:
        held_s = time.time()
        with held(run.the(role)):
            found_s = await_discovery(run, role, held_s)
            works_s = run.await_rise(COUNTERS, found_s)
        assert "answered nothing" in run.incidents(held_s, "cluster_lost")[0]["cause"]
        run.end_well()
    record_figure(f"{role} held by a debugger", "until found", found_s - held_s, "s")
    record_figure(f"{role} held by a debugger", "until all works again", works_s - held_s, "s")


@contextlib.contextmanager
def busy_host() -> Iterator[None]:
    """Ten processes for each core that never rest."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin) for _ in range(BUSY_PROCESSES)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@only_in_full("a busy host")
@pytest.mark.timeout(600)
def test_no_cluster_is_given_up_because_its_host_is_busy(tmp_path: Path) -> None:
    with chaos_run(tmp_path) as run:
        start_s, daemons = time.time(), (run.the("gcs_server"), run.the("raylet"))
        with busy_host():
            time.sleep(LOADED_S)
        assert not run.incidents(start_s, "cluster_lost"), run.story()
        assert daemons == (run.the("gcs_server"), run.the("raylet"))
        run.end_well()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_cluster_is_made_anew_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        small_disk(tmp_path / "run", DISK_KIB) as disk,
        chaos_run(tmp_path, *FULL_DISK) as run,
    ):
        keeper = run.the("keeper")
        with kept_full(disk):
            _lose_the_cluster(run)
            time.sleep(FULL_S)
            assert read_cluster(disk) is None, "the disk is not full"
            gcs = run.the("gcs_server")
        room_s = time.time()
        works_s = run.await_rise(COUNTERS, room_s)
        assert (run.the("keeper"), run.the("gcs_server")) == (keeper, gcs), run.story()
        run.end_well()
    record_figure("cluster lost on a full disk", "at work after room", works_s - room_s, "s")


def _lose_the_cluster(run: ChaosRun) -> None:
    old = run.the("gcs_server")
    run.kill(old)
    run.until(lambda: any(p != old for p in run.role("gcs_server")), 120, "another control store")


@only_in_full("tests/test_spacing.py has the rule")
@pytest.mark.timeout(600)
def test_whoever_asks_for_new_clusters_again_and_again_gets_few(tmp_path: Path) -> None:
    with chaos_run(tmp_path) as run:
        control, first, start_s = Control(run.run_dir), run.the("gcs_server"), time.monotonic()
        made: set[psutil.Process] = set()

        def two_were_made() -> bool:
            control.request("recycled")
            made.update(process for process in run.role("gcs_server") if process != first)
            asked_s = time.monotonic() - start_s
            assert len(made) <= sum(due_s <= asked_s for due_s in DUE_S), run.story()
            return len(made) >= 2

        run.until(two_were_made, 240, "two clusters that were asked for")
        put_off = run.incidents(kind="recycling_put_off")
        assert put_off and "soon after the one before" in put_off[0]["cause"]
        assert put_off[0]["action"].startswith("it is made in ")
        run.await_rise(COUNTERS, time.time())
        control.clear("recycled")
        run.end_well()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["gcs_server", "raylet"])
def test_nothing_of_the_old_cluster_lives_beside_the_new_one(tmp_path: Path, role: str) -> None:
    """Ray's agents least of all, whose own title lies where the run's mark was."""
    with chaos_run(tmp_path) as run:
        raylet, victim, killed_s = run.the("raylet"), run.the(role), time.time()
        old = [raylet, run.the("gcs_server"), *raylet.children(recursive=True)]
        assert sum("Agent" in " ".join(process.cmdline()) for process in old) == 2
        run.kill(victim)
        run.until(lambda: any(p not in old for p in run.role("gcs_server")), 120, "another")
        assert not [process for process in old if not is_gone(process)]
        await_recovery(run, role, victim.pid, killed_s)
        run.end_well()
