"""`rl-cluster keep`, asked at every boot: which runs it goes on with, and what it tells systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl_cluster.cluster.keeper import Keeper, _take_up
from rl_cluster.control import NO_ROOM, Control
from rl_cluster.run_directory import ClusterAddress, RunDirectory
from rl_cluster.service import IN_USE, RUN_FAILED, Notifier
from rl_cluster.signals import StopFlag
from rl_cluster.telemetry.incidents import read_incidents

SESSION = {"id": "first", "wall_before_s": 5.0, "object_store_bytes": 1}


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """Of a run that has begun, and of which nothing runs any more."""
    control = Control(tmp_path)
    control.write("session", SESSION)
    return control


def take_up(run_dir: Path) -> int | None:
    directory = RunDirectory(run_dir)
    code = _take_up(directory)
    directory.release()
    return code


def test_a_run_that_was_cut_off_is_gone_on_with(control: Control, tmp_path: Path) -> None:
    assert take_up(tmp_path) is None
    assert control.read("session") == SESSION


@pytest.mark.parametrize("state", ["completed", "interrupted"])
def test_a_run_that_is_over_stays_over(control: Control, tmp_path: Path, state: str) -> None:
    control.write("ended", {"state": state, "reason": None})
    assert take_up(tmp_path) == 0
    assert control.read("ended") is not None


def test_a_run_that_was_complete_when_the_host_ended_it_stays_over(
    control: Control, tmp_path: Path
) -> None:
    control.request("leave")
    control.write("ended", {"state": "completed", "reason": None})
    assert take_up(tmp_path) == 0


def test_on_a_cluster_of_others_the_host_s_own_stop_is_over_after_the_boot(
    control: Control, tmp_path: Path
) -> None:
    """Nobody can tell from here whether that cluster lives."""
    for request in ("leave", "stop"):
        control.request(request)
    RunDirectory(tmp_path).write_address(ClusterAddress("10.0.0.1:6379", "run", ()))
    assert take_up(tmp_path) is None
    assert not control.requested("stop")


def test_a_run_that_the_host_itself_ended_is_gone_on_with(control: Control, tmp_path: Path) -> None:
    for request in ("leave", "stop"):
        control.request(request)
    control.write("ended", {"state": "interrupted", "reason": None})
    assert take_up(tmp_path) is None
    assert not control.requested("stop") and not control.requested("leave")
    assert control.read("ended") is None and control.read("session") == SESSION


def test_a_host_that_went_down_before_all_was_saved_does_not_stop_the_run_for_good(
    control: Control, tmp_path: Path
) -> None:
    for request in ("leave", "stop"):
        control.request(request)
    assert take_up(tmp_path) is None
    assert not control.requested("stop")


def test_what_a_person_has_asked_for_is_still_done_after_a_crash(
    control: Control, tmp_path: Path
) -> None:
    control.request("stop")
    assert take_up(tmp_path) is None
    assert control.requested("stop")


def test_a_run_that_failed_is_tried_again_and_nothing_of_it_counts_as_given_up(
    control: Control, tmp_path: Path
) -> None:
    control.write("ended", {"state": "failed", "reason": "all tasks were parked"})
    assert take_up(tmp_path) is None
    session = control.read("session")
    assert session is not None and session["id"] != SESSION["id"]
    assert session["wall_before_s"] == 5.0 and control.read("ended") is None


def test_who_keeps_it_already_is_left_alone(control: Control, tmp_path: Path) -> None:
    holder = RunDirectory(tmp_path)
    holder.take_lock()
    assert take_up(tmp_path) == IN_USE
    holder.release()


def test_a_damaged_session_is_said_and_put_aside(control: Control, tmp_path: Path) -> None:
    (control.path / "session.json").write_text('{"id": "fi')
    assert take_up(tmp_path) == RUN_FAILED
    assert list(control.path.glob("session.json.damaged-*"))


def test_systemd_hears_that_a_service_with_nothing_to_do_was_up(tmp_path: Path) -> None:
    """Or it counts as failed, whatever its exit code, and is started again every ten seconds."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(10)
        command = [sys.executable, "-m", "rl_cluster.cluster.keeper", str(tmp_path / "run")]
        answer = subprocess.run(command, env=os.environ | {"NOTIFY_SOCKET": address})
        assert answer.returncode == 0
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize(("code", "vain", "kinds"), [(NO_ROOM, 0, 1), (1, 2000, 2000)])
def test_a_start_that_waits_for_room_is_tried_for_ever_and_said_once(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, vain: int,
    kinds: int,
) -> None:  # fmt: skip
    """Two thousand tries half a minute apart are most of a day."""
    stop = StopFlag()
    monkeypatch.setattr(stop, "wait", lambda longest_s: longest_s > 30.0 and pytest.fail("longer"))
    keeper = Keeper(RunDirectory(tmp_path), stop, Notifier())
    keeper._starter = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    keeper._starter.wait()
    monkeypatch.setattr(keeper, "_restart", lambda cause: None)
    for _ in range(2000):
        keeper._restart_after_a_while("the store has 0 GB free")
    assert keeper._vain_restarts == vain
    said = [each.kind for each in read_incidents(tmp_path)]
    assert said == ["store_taken" if code == NO_ROOM else "cluster_lost"] * kinds
