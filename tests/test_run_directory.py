"""The run directory: one writer at a time, however the last one died, and nothing overwritten."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small_disk import fill, small_disk
from telemetry_samples import run_summary

from rl_cluster.cluster.training import Interrupted, watch
from rl_cluster.config_file import from_mapping, load
from rl_cluster.control import Control, ProcessId
from rl_cluster.effective import resolve
from rl_cluster.machine import Machine
from rl_cluster.run_directory import (
    ClusterAddress,
    RunDirectory,
    RunDirectoryError,
    is_in_use,
    read_address,
    read_cluster,
)
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.summary import write_summary

REQUESTED = from_mapping({"tasks": ["Pong"], "seed": 3})
EFFECTIVE = resolve(REQUESTED, Machine(2, 10**10, 10**10))
OTHERS = ClusterAddress("10.0.0.7:6379", "mine", ())
"""A cluster that is not the run's own."""

HOLDER = """
import sys
from pathlib import Path
from rl_cluster.run_directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
directory.take(resume=sys.argv[2] == "resume")
print("taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path, resume: bool = False) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), "resume" if resume else "fresh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "taken\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def finished_run(path: Path) -> Path:
    """A directory that was a run."""
    directory = RunDirectory(path)
    directory.take(resume=False)
    directory.write_configuration(REQUESTED, EFFECTIVE)
    directory.release()
    return path


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_a_directory_that_is_not_there_is_made_and_taken(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "mine")
    directory.take(resume=False)
    assert directory.path.is_dir()
    assert directory.name == "mine"
    directory.release()


def test_a_relative_path_keeps_its_place_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(Path("mine"))
    monkeypatch.chdir("/")
    assert directory.path == tmp_path / "mine"


def test_a_run_in_use_by_another_process_is_refused_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with (
        held_by_another_process(path) as holder,
        pytest.raises(RunDirectoryError, match=rf"in use by process {holder.pid}, since \d{{4}}-"),
    ):
        RunDirectory(path).take(resume=False)


def test_a_live_run_cannot_be_resumed_beside_itself(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    with held_by_another_process(path, resume=True) as holder:
        before = files(path)
        for _ in range(2):
            with pytest.raises(RunDirectoryError, match=f"in use by process {holder.pid}"):
                RunDirectory(path).take(resume=True)
        assert files(path) == before


def test_the_lock_is_free_as_soon_as_its_holder_was_killed(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    with held_by_another_process(path, resume=True) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        directory = RunDirectory(path)
        directory.take(resume=True)
        said = (path / "lock").read_text()
        assert re.fullmatch(rf"process {os.getpid()}, since [-\d]+ [:\d]+\n", said)
        directory.release()


def test_a_full_disk_takes_neither_lock_nor_old_address(tmp_path: Path) -> None:
    """And what it did not take is written as soon as there is room."""
    with small_disk(tmp_path, 256) as disk:
        directory = RunDirectory(disk)
        directory.take(resume=False)
        directory.write_address(OTHERS)
        assert directory.has_room
        os.ftruncate(directory.lock_fd, 0)
        fill(disk / "others", 0)
        assert not directory.has_room
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                directory.sign()
            with pytest.raises(OSError, match="No space left"):
                directory.write_address(replace(OTHERS, namespace="another"))
        assert read_cluster(disk) == OTHERS and is_in_use(disk)
        (disk / "others").unlink()
        directory.sign()
        assert (disk / "lock").read_text().startswith(f"process {os.getpid()}, ")
        directory.release()
        assert not is_in_use(disk)


def test_the_lock_is_free_after_release(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    for _ in range(2):
        directory = RunDirectory(path)
        directory.take(resume=True)
        with pytest.raises(RunDirectoryError, match="in use"):
            RunDirectory(path).take(resume=True)
        directory.release()


def test_a_run_is_not_begun_again_over_itself(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    before = files(path)
    with pytest.raises(RunDirectoryError, match=r"is a run already: add --resume.*--run"):
        RunDirectory(path).take(resume=False)
    assert files(path) == before


@pytest.mark.parametrize("there", [True, False])
def test_nothing_cannot_be_resumed_and_nothing_is_made(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "mine"
    if there:
        path.mkdir()
    with pytest.raises(RunDirectoryError, match="holds no run to resume"):
        RunDirectory(path).take(resume=True)
    assert path.exists() == there
    assert not there or list(path.iterdir()) == []


def test_a_run_that_ended_before_it_wrote_anything_is_no_run(tmp_path: Path) -> None:
    """Nothing would be lost, so the same command may be given again."""
    path = tmp_path / "mine"
    for _ in range(2):
        directory = RunDirectory(path)
        directory.take(resume=False)
        directory.release()


def test_both_configurations_are_written_and_read_back(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    assert load(path / "config.yaml") == REQUESTED
    document = yaml.safe_load((path / "effective.yaml").read_text(encoding="utf-8"))
    assert from_mapping(document["config"]) == EFFECTIVE.config
    assert len(document["differences"]) == len(EFFECTIVE.differences)


def test_a_lock_that_was_handed_over_stays_with_its_heir(tmp_path: Path) -> None:
    """The driver takes the directory and starts the keeper, which keeps it."""
    path = finished_run(tmp_path / "mine")
    directory = RunDirectory(path)
    directory.take(resume=True)
    script = (
        "import sys; from pathlib import Path; from rl_cluster.run_directory import RunDirectory\n"
        "directory = RunDirectory(Path(sys.argv[1]), int(sys.argv[2])); directory.sign()\n"
        "print('signed', flush=True); sys.stdin.read()\n"
    )
    heir = subprocess.Popen(
        [sys.executable, "-c", script, path, str(directory.lock_fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[directory.lock_fd],
    )
    directory.release()
    assert heir.stdout is not None and heir.stdout.readline() == "signed\n"
    with pytest.raises(RunDirectoryError, match=f"in use by process {heir.pid}, since"):
        RunDirectory(path).take(resume=True)
    assert is_in_use(path)
    heir.kill()
    heir.communicate()
    assert not is_in_use(path)


@contextmanager
def cluster(path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that a directory names as its cluster."""
    daemons = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        ids = tuple(ProcessId.of(daemon.pid) for daemon in daemons)
        RunDirectory(path).write_address(ClusterAddress("127.0.0.1:6379", "mine", ids))
        yield daemons
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_whose_keeper_died_belongs_to_its_cluster(tmp_path: Path, resume: bool) -> None:
    """The supervisor there starts another keeper within seconds: two must not write."""
    path = finished_run(tmp_path / "mine")
    with cluster(path) as daemons:
        with pytest.raises(RunDirectoryError) as caught:
            RunDirectory(path).take(resume=resume)
        said = str(caught.value)
        assert f"process {daemons[0].pid}" in said and "rl-cluster stop" in said
        assert is_in_use(path)
        assert read_address(path).address == "127.0.0.1:6379"
        RunDirectory(path).take_lock()  # as that keeper does: the refusal has let go of it


def test_a_cluster_without_one_of_its_processes_is_none(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    with cluster(path) as daemons:
        daemons[1].kill()
        daemons[1].wait()
        assert not is_in_use(path)
        directory = RunDirectory(path)
        directory.take(resume=True)
        directory.release()


def test_a_cluster_s_later_namesakes_are_not_taken_for_it(tmp_path: Path) -> None:
    """After a reboot its numbers belong to others."""
    path = finished_run(tmp_path / "mine")
    own = ProcessId.of(os.getpid())
    for other in (replace(own, boot_id="before"), replace(own, start_ticks=own.start_ticks - 5)):
        RunDirectory(path).write_address(ClusterAddress("127.0.0.1:6379", "mine", (other,)))
        assert not is_in_use(path)


def test_addresses_come_back_as_they_were_written(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert read_cluster(tmp_path) is None
    own = ClusterAddress("127.0.0.1:1", "mine", (ProcessId.of(os.getpid()),))
    for address in (OTHERS, own):
        directory.write_address(address)
        assert read_cluster(tmp_path) == address
    directory.forget_address()
    directory.forget_address()
    assert read_cluster(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"address": "a"}', '{"daemons": 3}'])
def test_an_address_that_is_not_whole_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert read_cluster(tmp_path) is None


def test_a_run_can_be_reached_while_it_is_kept(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    with pytest.raises(RunDirectoryError, match=r"is not running now.*--resume --run .*mine"):
        read_address(path)
    with held_by_another_process(path, resume=True) as holder:
        with pytest.raises(RunDirectoryError, match="is starting: try again"):
            read_address(path)
        RunDirectory(path).write_address(OTHERS)
        for _ in range(2):  # asking does not take the lock away
            assert read_address(path) == OTHERS
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with pytest.raises(RunDirectoryError, match="is not running now"):
            read_address(path)


def test_nothing_is_fetched_into_a_run_that_is_live(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "mine")
    before = sorted(path.rglob("*"))
    with held_by_another_process(path, resume=True):
        answer = subprocess.run(
            [sys.executable, "-m", "rl_cluster.cli", "fetch", f"file://{tmp_path}", path, "Pong"],
            capture_output=True,
            text=True,
        )
    assert answer.returncode == 1 and f"rl-cluster stop {path}" in answer.stderr
    assert sorted(path.rglob("*")) == before


def test_a_run_that_is_starting_is_asked_to_stop_like_any_other(tmp_path: Path) -> None:
    """Its cluster may take its time, or never come: that is when one wants to stop it."""
    path = finished_run(tmp_path / "mine")
    with held_by_another_process(path, resume=True) as holder:
        command = [sys.executable, "-m", "rl_cluster.cli", "stop", path]
        with subprocess.Popen(command) as stopping:
            request = path / "control" / "stop.request"
            deadline_s = time.monotonic() + 60
            while not request.exists():
                assert time.monotonic() < deadline_s and stopping.poll() is None
                time.sleep(0.05)
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            assert stopping.wait(60) == 0
    assert not request.exists()
    ended = Control(path).read("ended")
    assert ended is not None and ended["state"] == "interrupted", "no boot goes on with it"


def test_another_configuration_is_told_from_the_same(tmp_path: Path) -> None:
    """What was changed live is kept for the configuration that it was changed from."""
    assert RunDirectory(tmp_path / "new").is_other(REQUESTED)
    directory = RunDirectory(finished_run(tmp_path / "mine"))
    assert not directory.is_other(from_mapping({"tasks": ["Pong"], "seed": 3}))
    assert directory.is_other(from_mapping({"tasks": ["Pong"], "seed": 4}))
    moved = {"address": "192.0.2.7:6379"}
    assert not directory.is_other(from_mapping({"tasks": ["Pong"], "seed": 3, "cluster": moved}))
    (directory.path / "config.yaml").write_text("tasks: [Pong]\nsetting_of_a_later_version: 1\n")
    assert directory.is_other(REQUESTED)


def test_what_is_no_run_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is not running now"):
        read_address(tmp_path / "nothing")


def test_the_last_summary_says_how_a_run_ended_that_could_not_say_so_itself(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.mark_ended("failed")
    assert directory.earlier_summary() is None
    write_summary(tmp_path, run_summary(state="running"))
    directory.mark_ended("failed")
    assert directory.earlier_summary() == run_summary(state="failed")
    directory.mark_ended("interrupted")
    assert directory.earlier_summary() == run_summary(state="failed"), "of the session before"


def test_a_run_interrupted_before_it_reported_does_not_end_as_the_session_before(
    tmp_path: Path,
) -> None:
    directory, control = RunDirectory(finished_run(tmp_path)), Control(tmp_path)
    write_summary(tmp_path, run_summary(state="completed"))
    control.write("ended", {"state": "interrupted", "reason": None})
    with pytest.raises(Interrupted):
        watch(directory, StopFlag(), lambda summary: None)
    control.write("ended", {"state": "completed", "reason": None})
    assert watch(directory, StopFlag(), lambda summary: None)["state"] == "completed"


def test_a_resumed_run_knows_how_the_last_session_ended(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.earlier_summary() is None
    write_summary(tmp_path, run_summary())
    assert directory.earlier_summary() == run_summary()
