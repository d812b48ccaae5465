"""Standing in line for a processor is told from sleeping, being stopped, and being gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rl_cluster.run_queue import RunQueue

SPINS = "while True: pass"
SLEEPS = "import time; print(flush=True); time.sleep(1000)"


@contextmanager
def process(code: str, on_core: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        if on_core is not None:
            os.sched_setaffinity(child.pid, {on_core})
        yield child
    finally:
        child.kill()
        child.communicate()


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_who_shares_a_core_with_others_that_never_rest_stands_in_line() -> None:
    core = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(process(SPINS, core)) for _ in range(4)]
        line = RunQueue(first.pid)
        until(lambda: line.waited_s() > 1)


def test_who_sleeps_or_was_stopped_or_is_gone_stands_in_none() -> None:
    with process(SLEEPS) as sleeper, process(SPINS) as stopped, process(SPINS) as killed:
        assert sleeper.stdout is not None and sleeper.stdout.readline()
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        lines = [RunQueue(each.pid) for each in (sleeper, stopped, killed)]
        killed.kill()
        killed.wait()
        time.sleep(1)
        waited_s = [line.waited_s() for line in lines]
        assert max(waited_s) < 0.5, waited_s


def test_a_kernel_that_says_nothing_excuses_nobody(tmp_path: Path) -> None:
    task = tmp_path / "proc" / "7" / "task" / "7"
    task.mkdir(parents=True)
    line = RunQueue(7, tmp_path)
    assert line.waited_s() == 0
    (task / "schedstat").write_text("")
    assert line.waited_s() == 0
    (task / "schedstat").write_text("123 2500000000 4\n")
    assert line.waited_s() == 2.5
