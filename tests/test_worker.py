"""A supervised place: whom it kills, and which of its lives came to nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from rl_cluster.cluster.worker import Worker, kill_process
from rl_cluster.control import ProcessId
from rl_cluster.supervision.health import Deadlines, Health, Phase

DEADLINES = Deadlines(100.0, 10.0, 40.0)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_is_killed_even_if_it_is_frozen(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(child.pid)
    child.send_signal(signal.SIGSTOP)
    kill_process(process)
    assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("other", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_a_later_process_of_the_same_number_is_left_alone(
    child: subprocess.Popen[bytes], other: dict[str, object]
) -> None:
    kill_process(replace(ProcessId.of(child.pid), **other))  # type: ignore[arg-type]
    child.communicate(b"\n", timeout=10)
    assert child.returncode == 0, "it ended by itself"


def test_one_that_is_gone_is_no_error(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(child.pid)
    child.kill()
    child.wait()
    kill_process(process)


def says(worker: Worker, work: int, in_vain: bool = False, phase: Phase = "working") -> None:
    said = Health(1, phase, 3 * work + 7, 10**8, 4711, 1, "boot", "node", None, in_vain, work)
    worker._take(said, 0.0)


def life(worker: Worker, *progress: int, in_vain: bool = False) -> int:
    """A life that said so much of itself; return the fruitless ones in a row after it."""
    for step in progress:
        says(worker, step, in_vain)
    worker.fail(0.0, "boom")
    worker._first_work = None  # as when the place is filled anew
    return worker.record().fruitless


def test_a_life_that_gets_on_but_in_vain_is_fruitless() -> None:
    worker = Worker("learner:A", "A", "learner", DEADLINES)
    assert life(worker, 5, 9) == 0
    assert [life(worker, 5, 9, in_vain=True) for _ in range(3)] == [1, 2, 3]
    assert life(worker, 5) == 4
    assert life(worker, 5, 6) == 0


def test_a_life_that_only_started_or_was_only_called_is_fruitless() -> None:
    worker = Worker("learner:A", "A", "learner", DEADLINES)
    says(worker, 1, phase="starting")  # a look at the GPU's memory is a step, too
    says(worker, 2, phase="starting")
    worker.fail(0.0, "boom")
    assert worker.record().fruitless == 1
    for phase in ("waiting", "working"):
        says(worker, 0, phase=phase)  # its phase changed, and its first step never came to an end
    worker.fail(0.0, "boom")
    assert worker.record().fruitless == 2


def test_that_it_gets_on_again_is_told_once_and_counts_from_its_first_failure() -> None:
    worker = Worker("learner:A", "A", "learner", DEADLINES)
    says(worker, 1)
    says(worker, 2)
    assert worker.recovered_after_s(5.0) is None, "it had not failed"
    worker.fail(10.0, "boom")
    worker._first_work = None  # as when the place is filled anew
    worker.fail(12.0, "boom again")
    says(worker, 1)
    assert worker.recovered_after_s(14.0) is None, "it is there, and has not done anything yet"
    says(worker, 2)
    assert worker.recovered_after_s(15.0) == 5.0
    assert worker.recovered_after_s(16.0) is None


def test_a_place_that_is_emptied_since_it_is_wanted_no_more_does_not_recover() -> None:
    worker = Worker("learner:A", "A", "learner", DEADLINES)
    worker.fail(10.0, "boom")
    worker.empty()
    says(worker, 1)
    says(worker, 2)
    assert worker.recovered_after_s(3_600.0) is None


def test_a_new_actor_is_coming_until_it_gets_on_or_takes_too_long() -> None:
    worker = Worker("learner:A", "A", "learner", DEADLINES)
    assert not worker.is_coming(100.0), "nobody is there"
    worker.fill(object(), 100.0)  # type: ignore[arg-type]
    assert worker.is_coming(100.0) and not worker.is_coming(120.0)
    says(worker, 1)
    assert worker.is_coming(101.0)
    says(worker, 2)
    assert not worker.is_coming(101.0)
