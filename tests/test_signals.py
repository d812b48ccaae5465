"""SIGINT and SIGTERM set a flag, SIGHUP nothing: a run answers when it next looks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rl_cluster.signals import StopFlag, let_through


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    """An installed flag; afterwards the signals do again what they did."""
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in taken}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    installed = StopFlag()
    installed.install()
    yield installed
    while signal.sigtimedwait(taken, 0) is not None:
        pass
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_no_signal_no_flag(flag: StopFlag) -> None:
    assert not flag
    assert not flag.wait(0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_interrupts_nothing(
    flag: StopFlag, number: signal.Signals
) -> None:
    signal.raise_signal(number)
    assert flag
    assert flag.wait(60.0)


def test_a_second_signal_changes_nothing(flag: StopFlag) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert flag


def test_a_terminal_that_closes_does_not_end_the_run(flag: StopFlag) -> None:
    signal.raise_signal(signal.SIGHUP)
    assert not flag


def test_the_handler_of_a_library_is_never_called(flag: StopFlag) -> None:
    """Ray takes SIGTERM when it starts, and gives it back its default when it ends."""
    called = []
    signal.signal(signal.SIGTERM, lambda *_: called.append(True))
    signal.raise_signal(signal.SIGTERM)
    assert flag and not called
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)
    assert flag


def test_a_process_that_was_stopped_and_goes_on_has_no_flag() -> None:
    """As Ctrl-Z and `fg` do."""
    script = """
import time
from rl_cluster.signals import StopFlag
flag = StopFlag()
flag.install()
print("ready", flush=True)
end_s = time.monotonic() + 3.0
while time.monotonic() < end_s:
    flag.wait(0.2)
print(bool(flag))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        assert process.stdout.read() == "False\n"


def test_threads_started_later_leave_the_signals_to_the_flag() -> None:
    """In a process of its own: threads that pytest has already would take the signal."""
    script = """
import os, signal, threading
from rl_cluster.signals import StopFlag
flag, done = StopFlag(), threading.Event()
flag.install()
thread = threading.Thread(target=done.wait)
thread.start()
os.kill(os.getpid(), signal.SIGTERM)
print(flag.wait(10.0))
done.set()
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout.strip()) == (0, "True"), answer.stderr


def test_a_new_process_can_be_ended_again(flag: StopFlag) -> None:
    process = subprocess.Popen(["sleep", "60"], preexec_fn=let_through)
    process.terminate()
    assert process.wait(timeout=10) == -signal.SIGTERM
