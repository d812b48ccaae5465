"""The end of a run's processes: every one of them, marked or not, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rl_cluster.cluster import runtime
from rl_cluster.cluster.runtime import end_processes, processes_of
from rl_cluster.control import RUN_MARK, ProcessId
from rl_cluster.run_directory import ClusterAddress

# A parent, as a raylet, and a child of it that has lost the mark, as Ray's agents.
PARENT = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], env={}, start_new_session=sys.argv[1] == "apart")
print(child.pid, flush=True)
child.wait()
"""

Start = Callable[..., tuple[psutil.Process, psutil.Process]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a parent of a run in `tmp_path`, in a group of its own, and its child."""
    started: list[psutil.Process] = []
    parents: list[subprocess.Popen[str]] = []

    def begin(run_dir: Path = tmp_path, where: str = "apart") -> tuple[psutil.Process, ...]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, where],
            env=os.environ | {RUN_MARK: str(run_dir)},
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        parents.append(parent)
        assert parent.stdout is not None
        pair = (psutil.Process(parent.pid), psutil.Process(int(parent.stdout.readline())))
        started.extend(pair)
        return pair

    yield begin  # type: ignore[misc]
    for process in started:
        if process.is_running():
            process.kill()
    for parent in parents:
        parent.communicate()


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def as_cluster(daemon: ProcessId) -> ClusterAddress:
    return ClusterAddress("127.0.0.1:1", "mine", (daemon,))


def test_children_without_the_mark_end_with_their_parent(start: Start, tmp_path: Path) -> None:
    pair, others = start(), start(tmp_path / "another")
    assert processes_of(tmp_path) == set(pair)
    assert end_processes(tmp_path) == []
    assert all(map(is_gone, pair))
    assert not any(map(is_gone, others))


def test_orphans_of_a_dead_raylet_are_known_by_its_group(start: Start, tmp_path: Path) -> None:
    parent, child = start(where="beside")
    cluster = as_cluster(ProcessId.of(parent.pid))
    parent.kill()
    parent.wait()
    assert processes_of(tmp_path) == set(), "neither mark nor descent tells"
    assert end_processes(tmp_path, cluster) == []
    assert is_gone(child)


def test_a_group_of_another_boot_or_of_a_later_process_is_others(
    start: Start, tmp_path: Path
) -> None:
    parent, child = start(tmp_path / "another", where="beside")
    leader = ProcessId.of(parent.pid)
    assert processes_of(tmp_path, as_cluster(leader)) == {parent, child}
    later = replace(leader, start_ticks=leader.start_ticks - 5)
    assert processes_of(tmp_path, as_cluster(later)) == set()
    parent.kill()
    parent.wait()
    before = replace(leader, boot_id="before")
    assert processes_of(tmp_path, as_cluster(before)) == set()
    assert not is_gone(child)


def test_whoever_asks_is_left_out(tmp_path: Path) -> None:
    """The keeper carries the mark, too."""
    script = (
        "import sys; from pathlib import Path\n"
        "from rl_cluster.cluster.runtime import end_processes, processes_of\n"
        "assert processes_of(Path(sys.argv[1])) == set()\n"
        "print(end_processes(Path(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=os.environ | {RUN_MARK: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr


def test_one_that_does_not_die_is_reported(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a disk that is gone: no signal reaches it."""
    pair = start()
    monkeypatch.setattr(psutil.Process, "kill", lambda self: None)
    assert set(end_processes(tmp_path, timeout_s=0.2)) == {process.pid for process in pair}
    monkeypatch.undo()


def test_ray_s_token_is_read_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime._hide_token()  # there is none yet
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    runtime._hide_token()
    assert token.stat().st_mode & 0o777 == 0o600
