"""Control files: processes that cannot be mistaken, pulses, and files that are whole or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.boot_journal import present_boot_id
from rl_cluster.control import Control, ProcessId, PulseReader


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


# Processes


def test_a_process_is_known_while_it_lives_and_not_beyond() -> None:
    with sleeper() as process:
        found = ProcessId.of(process.pid)
        assert found.alive
        assert found == ProcessId.of(process.pid)
        process.kill()
    assert not found.alive


def test_one_that_is_stopped_lives() -> None:
    with sleeper() as process:
        found = ProcessId.of(process.pid)
        process.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        assert found.alive
        process.kill()


def test_only_a_signal_stops_a_process() -> None:
    with sleeper() as process:
        found = ProcessId.of(process.pid)
        assert not found.stopped
        process.send_signal(signal.SIGSTOP)
        until(lambda: found.stopped)
        assert not replace(found, start_ticks=found.start_ticks - 1).stopped, "that was another"
        process.send_signal(signal.SIGCONT)
        until(lambda: not found.stopped)
        process.kill()
    assert not found.stopped


def test_a_zombie_is_dead_though_its_number_is_taken() -> None:
    with sleeper() as process:
        found = ProcessId.of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
        assert not found.alive


def test_a_later_process_of_the_same_number_is_another() -> None:
    own = ProcessId.of(os.getpid())
    assert own.alive
    assert not replace(own, start_ticks=own.start_ticks - 1).alive
    assert not replace(own, boot_id="another boot").alive
    assert own.boot_id == present_boot_id()


def test_what_is_not_there_has_no_identity() -> None:
    with sleeper() as process:
        process.kill()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(process.pid)


def test_a_program_may_be_called_what_it_likes(tmp_path: Path) -> None:
    """/proc/PID/stat puts the name, spaces and brackets included, before everything else."""
    named = tmp_path / "a) Z (b 1 2"
    named.symlink_to("/bin/sleep")
    with subprocess.Popen([named, "60"]) as process:
        until(lambda: ") Z (b" in Path(f"/proc/{process.pid}/stat").read_text())
        assert ProcessId.of(process.pid).alive
        process.kill()


# Files


JSON = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(), st.lists(st.text())
    ),
)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(tmp_path_factory.mktemp("run"))


@given(content=JSON)
def test_what_is_written_is_read(control: Control, content: dict[str, object]) -> None:
    control.write("content", content)
    assert control.read("content") == content


def test_what_was_not_written_is_not_there(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert control.read("session") is None
    assert control.signed("keeper") is None
    assert control.pulse("keeper") is None
    assert not control.requested("stop")
    control.forget("session")
    control.clear("stop")


@given(damaged=st.binary(max_size=60))
def test_a_file_that_is_not_whole_counts_as_none(control: Control, damaged: bytes) -> None:
    (control.path / "torn.json").write_bytes(damaged)
    content = control.read("torn")
    assert content is None or content == json.loads(damaged)


@pytest.mark.parametrize("length", range(0, 40, 7))
def test_a_torn_file_counts_as_none(tmp_path: Path, length: int) -> None:
    control = Control(tmp_path)
    control.write("session", {"id": "x" * 20, "wall_before_s": 12.5})
    path = control.path / "session.json"
    path.write_bytes(path.read_bytes()[:length])
    assert control.read("session") is None


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"text"', "null"])
def test_json_that_is_no_object_counts_as_none(tmp_path: Path, text: str) -> None:
    control = Control(tmp_path)
    (control.path / "session.json").write_text(text)
    assert control.read("session") is None


@pytest.mark.parametrize("text", ['{"pid": 3}', '{"pid": 1, "who": 2}', '{"pid": [], "x"', "{}"])
def test_a_damaged_signature_is_nobody_s(tmp_path: Path, text: str) -> None:
    control = Control(tmp_path)
    (control.path / "keeper.json").write_text(text)
    assert control.signed("keeper") is None


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.write("session", {"id": "old"})
    with pytest.raises(ValueError):
        control.write("session", {"id": float("nan")})
    assert control.read("session") == {"id": "old"}
    assert [p.name for p in control.path.iterdir()] == ["session.json"]


def test_a_role_is_signed_by_one_process_after_the_other(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.sign("keeper", os.getpid())
    assert control.signed("keeper") == ProcessId.of(os.getpid())
    with sleeper() as heir:
        Control(tmp_path).sign("keeper", heir.pid)
        assert control.signed("keeper") == ProcessId.of(heir.pid)
        heir.kill()
    signed = control.signed("keeper")
    assert signed is not None and not signed.alive


def test_what_is_kept_has_its_name_on_disk_when_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename alone is undone by a power failure."""
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), sync(fd)))
    control = Control(tmp_path)
    control.keep("wishes", {"tier": "light"})
    assert synced == [(control.path / "wishes.json").stat().st_ino, control.path.stat().st_ino]


def test_what_says_nothing_is_put_aside_and_named(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert control.put_aside("wishes") is None
    (control.path / "wishes.json").write_text("{torn")
    said = control.put_aside("wishes")
    (aside,) = control.path.glob("wishes.json.damaged-*")
    assert said is not None and aside.name in said and aside.read_text() == "{torn"
    assert control.read("wishes") is None and control.put_aside("wishes") is None


def test_a_request_stands_until_it_was_done(tmp_path: Path) -> None:
    control = Control(tmp_path)
    for _ in range(2):
        control.request("stop")
    assert Control(tmp_path).requested("stop")
    assert not control.requested("recycled")
    control.clear("stop")
    assert not Control(tmp_path).requested("stop")


def test_readers_see_an_old_file_or_a_new_one_while_another_process_writes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rl_cluster.control import Control\n"
        "control = Control(Path(sys.argv[1]))\n"
        "for i in range(300): control.write('state', {'from': i, 'x' * 5000: '', 'to': i})\n"
    )
    control, seen = Control(tmp_path), set()
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as writer:
        while writer.poll() is None:
            if (control.path / "state.json").exists():
                content = control.read("state")
                assert content is not None and content["from"] == content["to"]
                seen.add(content["from"])
    assert writer.returncode == 0 and len(seen) > 1


# Pulses


def beat(control: Control) -> None:
    """Beat until it shows: file times are as coarse as the kernel's tick."""
    before = control.pulse("supervisor")
    until(lambda: control.beat("supervisor") or control.pulse("supervisor") != before)


def test_silence_lasts_from_the_last_beat_that_was_seen(tmp_path: Path) -> None:
    control = Control(tmp_path)
    reader = PulseReader(control, "supervisor", 100.0)
    assert reader.silence_s(103.0) == 3.0
    beat(control)
    assert reader.silence_s(104.0) == 0.0
    assert reader.silence_s(109.0) == 5.0
    beat(control)
    assert reader.silence_s(110.0) == 0.0


def test_a_pulse_from_before_is_no_sign_of_life(tmp_path: Path) -> None:
    control = Control(tmp_path)
    beat(control)
    assert PulseReader(control, "supervisor", 0.0).silence_s(50.0) == 50.0


def test_who_is_started_anew_is_given_time(tmp_path: Path) -> None:
    reader = PulseReader(Control(tmp_path), "supervisor", 0.0)
    reader.reset(40.0)
    assert reader.silence_s(45.0) == 5.0


@pytest.mark.parametrize("jump_s", [-3_600, 3_600])
def test_a_clock_that_jumps_neither_hides_nor_makes_a_silence(tmp_path: Path, jump_s: int) -> None:
    """The time in the file is only told from another, never read."""
    control = Control(tmp_path)
    beat(control)
    reader = PulseReader(control, "supervisor", 0.0)
    then_s = time.time() + jump_s
    os.utime(control.path / "supervisor.pulse", (then_s, then_s))
    assert reader.silence_s(7.0) == 0.0
    assert reader.silence_s(16.0) == 9.0


def test_a_beat_that_nothing_can_be_made_for_is_not_seen(tmp_path: Path) -> None:
    """A disk that is full, or gone; whoever beats goes on."""
    control = Control(tmp_path)
    control.path.rmdir()
    control.beat("keeper")
    assert control.pulse("keeper") is None
    control.path.mkdir()
    control.beat("keeper")
    assert control.pulse("keeper") is not None


def test_a_lost_pulse_file_costs_a_beat(tmp_path: Path) -> None:
    control = Control(tmp_path)
    beat(control)
    reader = PulseReader(control, "supervisor", 0.0)
    (control.path / "supervisor.pulse").unlink()
    reader.silence_s(1.0)
    beat(control)
    assert reader.silence_s(2.0) == 0.0
