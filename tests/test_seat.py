"""The seat of a role: who signed last has it, and whoever it was taken from learns of it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from rl_cluster.cluster.seat import Seat, SeatLost
from rl_cluster.control import Control, ProcessId


def test_whoever_was_replaced_learns_of_it_at_the_next_look(tmp_path: Path) -> None:
    control = Control(tmp_path)
    seat = Seat(control, "supervisor")
    seat.hold()
    seat.hold()
    assert control.signed("supervisor") == ProcessId.of(os.getpid())
    control.write("supervisor", asdict(ProcessId.of(os.getppid())))
    with pytest.raises(SeatLost, match=str(os.getppid())):
        seat.hold()
    with pytest.raises(SeatLost):  # it does not take the seat back
        seat.hold()


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    control = Control(tmp_path)
    seat = Seat(control, "supervisor")
    seat.hold()
    me = ProcessId.of(os.getpid())
    control.write("supervisor", asdict(ProcessId(me.pid, me.start_ticks + 1, me.boot_id)))
    with pytest.raises(SeatLost):
        seat.hold()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": 1}'])
def test_a_lost_or_torn_signature_takes_nobodys_seat(tmp_path: Path, content: str | None) -> None:
    control = Control(tmp_path)
    seat = Seat(control, "supervisor")
    seat.hold()
    signature = control.path / "supervisor.json"
    signature.unlink()
    if content is not None:
        signature.write_text(content)
    seat.hold()


def test_an_heir_shows_itself_as_soon_as_it_sits(tmp_path: Path) -> None:
    control = Control(tmp_path)
    seat = Seat(control, "supervisor")
    assert control.pulse("supervisor") is None
    seat.hold()
    pulse = control.pulse("supervisor")
    assert pulse is not None
    seat.hold()
    assert control.pulse("supervisor") == pulse, "its ticks beat from then on"
