"""A team of threads: parts in order, errors raised, nobody left at work."""

from __future__ import annotations

import threading
import time

import pytest

from rl_cluster.agents.team import Team


def test_results_come_in_the_order_of_the_parts() -> None:
    def work(part: int) -> int:
        time.sleep(0.01 * (3 - part))
        return 10 * part

    assert Team(3).map(work, [0, 1, 2]) == [0, 10, 20]


def test_each_part_has_a_thread_of_its_own() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def work(_: int) -> int:
        meeting.wait()  # passes only when all three are at work at once
        return threading.get_ident()

    assert len(set(Team(3).map(work, [0, 1, 2]))) == 3


def test_a_team_of_one_works_in_the_caller_s_thread() -> None:
    assert Team(1).map(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_after_everybody_has_finished(failing: int) -> None:
    finished = []

    def work(part: int) -> None:
        if part == failing:
            raise ValueError(f"part {part}")
        time.sleep(0.05)
        finished.append(part)

    with pytest.raises(ValueError, match=f"part {failing}"):
        Team(3).map(work, [0, 1, 2])
    assert sorted(finished) == sorted({0, 1, 2} - {failing})
