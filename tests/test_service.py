"""A run as a service: a unit that systemd takes, and a watchdog that is told the truth."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl_cluster.control import Control
from rl_cluster.run_directory import RunDirectory
from rl_cluster.service import (
    IN_USE,
    RUN_FAILED,
    WATCHDOG_S,
    Notifier,
    ServiceError,
    install,
    unit_text,
)

RUN = Path("/srv/runs/two-games_1.5")


def unit(run_dir: Path = RUN) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit_text(run_dir, "trainer"))
    return parser


def test_the_unit_keeps_this_run_as_this_user_from_boot_on() -> None:
    found = unit()
    keeper = f"{sys.executable} -m rl_cluster.cluster.keeper {RUN}"
    assert found["Service"]["ExecStart"] == keeper
    assert found["Service"]["User"] == "trainer"
    assert found["Install"]["WantedBy"] == "multi-user.target"
    assert found["Unit"]["ConditionPathExists"] == f"{RUN}/config.yaml"
    assert "two-games_1.5" in found["Unit"]["Description"]


def test_systemd_ends_the_run_where_its_supervisor_no_longer_gets_on() -> None:
    found = unit()["Service"]
    assert found["Type"] == "notify" and found["NotifyAccess"] == "main"
    assert int(found["WatchdogSec"]) == WATCHDOG_S
    assert found["Restart"] == "on-failure"


def test_what_a_person_ended_is_not_started_again() -> None:
    """Exit codes of the keeper: complete, and stopped with everything saved."""
    assert unit()["Service"]["SuccessExitStatus"].split() == ["0", "130"]


def test_a_keeper_that_another_one_at_once_would_not_help_is_not_started_again() -> None:
    assert unit()["Service"]["RestartPreventExitStatus"].split() == [str(IN_USE), str(RUN_FAILED)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "rl-cluster-mine.service"

    def verdict(text: str) -> tuple[int, str]:
        path.write_text(text, encoding="utf-8")
        answer = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True
        )
        return answer.returncode, "".join(x for x in answer.stderr.splitlines() if "mine" in x)

    text = unit_text(RUN, "root")
    assert verdict(text) == (0, "")
    assert verdict(text.replace("WatchdogSec=120", "WatchdogSec=soon"))[1], "it looks closely"


# The notifier


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A socket as systemd gives to a service."""
    address = str(tmp_path / "notify")
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.bind(address)
    ours.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    return ours


def test_systemd_hears_that_it_is_ready_and_that_it_gets_on(systemd: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.alive()
    notifier.alive()
    assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    systemd.close()


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"rl-cluster-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(f"\0{name}")
        ours.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notifier().ready()
        assert ours.recv(100) == b"READY=1"


def test_the_processes_of_the_run_do_not_speak_for_the_service(systemd: socket.socket) -> None:
    Notifier()
    answer = subprocess.run(
        [sys.executable, "-c", "import os; print('NOTIFY_SOCKET' in os.environ)"],
        capture_output=True,
        text=True,
    )
    assert answer.stdout == "False\n"
    systemd.close()


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.alive()


def test_a_systemd_that_does_not_listen_does_not_end_the_run(systemd: socket.socket) -> None:
    """As while it is replaced; the keeper must outlive that."""
    notifier = Notifier()
    path = Path(systemd.getsockname())
    systemd.close()
    notifier.alive()
    path.unlink()
    notifier.alive()


# Installing


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a host with systemd, whose systemctl writes down what it was asked for."""
    for folder in ("run/systemd/system", "etc/systemd/system", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    program = tmp_path / "bin/systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def test_a_unit_is_written_enabled_and_started(host: Path) -> None:
    path = install(RUN, "trainer", host)
    assert path.parent == host / "etc/systemd/system"
    assert re.fullmatch(r"rl-cluster-two-games_1\.5-[0-9a-f]{8}\.service", path.name)
    assert path.read_text() == unit_text(RUN, "trainer")
    asked = (host / "asked").read_text().splitlines()
    assert asked == ["daemon-reload", f"enable --now {path.name}"]


def test_a_run_that_is_live_goes_on_as_it_is_until_the_next_boot(host: Path) -> None:
    directory = RunDirectory(host / "run1")
    directory.path.mkdir()
    directory.take_lock()
    path = install(directory.path, "trainer", host)
    directory.release()
    assert (host / "asked").read_text().splitlines() == ["daemon-reload", f"enable {path.name}"]


def test_a_relative_run_directory_is_named_in_full(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(host)
    assert f"keeper {host}/runs/mine\n" in install(Path("runs/mine"), "me", host).read_text()


def test_runs_in_directories_of_the_same_name_have_units_of_their_own(host: Path) -> None:
    """And a run that is installed again has the one that it had."""
    runs = [host / "a/mine", host / "b/mine"]
    paths = [install(run, "me", host) for run in (*runs, *runs)]
    assert paths[0] != paths[1] and paths[:2] == paths[2:]
    for run, path in zip(runs, paths, strict=False):
        assert path.read_text() == unit_text(run, "me")


def test_a_systemd_that_refuses_is_quoted(host: Path) -> None:
    (host / "bin/systemctl").write_text("#!/bin/sh\necho Access denied >&2; exit 4\n")
    with pytest.raises(ServiceError, match="systemctl daemon-reload failed: Access denied"):
        install(RUN, "trainer", host)


def test_where_the_unit_may_not_be_written_sudo_is_named(host: Path) -> None:
    (host / "etc/systemd/system").rmdir()
    (host / "etc/systemd/system").write_text("in the way, as for root nothing else is")
    with pytest.raises(ServiceError, match=r"cannot be written .*: use sudo"):
        install(RUN, "trainer", host)
    assert not (host / "asked").exists()


@pytest.mark.parametrize("name", ["two games", "half%n", "a;b", "it's"])
def test_a_path_that_a_unit_would_read_otherwise_is_refused(host: Path, name: str) -> None:
    with pytest.raises(ServiceError, match="letters, digits and"):
        install(host / name, "trainer", host)


def test_without_systemd_the_same_is_a_line_of_the_crontab(tmp_path: Path) -> None:
    with pytest.raises(ServiceError) as caught:
        install(RUN, "trainer", tmp_path)
    line = f"@reboot {sys.executable} -m rl_cluster.cli keep {RUN}"
    assert line in str(caught.value) and "crontab -e" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_crontab_s_command_keeps_quiet_where_there_is_nothing_to_keep(tmp_path: Path) -> None:
    """At every boot it is asked; a run that has ended stays ended."""
    command = [sys.executable, "-m", "rl_cluster.cli", "keep", tmp_path]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "nothing to keep" in answer.stderr
    Control(tmp_path).write("session", {"id": "it"})
    Control(tmp_path).write("ended", {"state": "completed", "reason": None})
    assert subprocess.run(command, capture_output=True).returncode == 0
