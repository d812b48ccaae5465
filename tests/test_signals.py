"""SIGINT and SIGTERM set a flag, SIGHUP nothing: a run answers when it next looks."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from rl_cluster.signals import StopFlag


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    """An installed flag; afterwards the signals do again what they did."""
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in taken}
    installed = StopFlag()
    installed.install()
    yield installed
    for number, handler in before.items():
        signal.signal(number, handler)


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


def test_the_signals_can_be_taken_back_from_a_library(flag: StopFlag) -> None:
    """Ray takes SIGTERM when it starts."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    flag.install()
    signal.raise_signal(signal.SIGTERM)
    assert flag
