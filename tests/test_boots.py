"""Reboots: counted once, only where there was one, and answered with less load for a while."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from rl_cluster.boot_journal import FILE_NAME, UNKNOWN_BOOT, BootJournal, present_boot_id
from rl_cluster.supervision.boots import LONGEST_CAP_S, BootEntry, cap_after
from rl_cluster.supervision.load import Cap, Load, below
from rl_cluster.supervision.tiers import LoadRule, start, with_cap

LIGHT, HEAVY = Load(2, 32, 512), Load(8, 256, 2048)
CAP_S = 3_600.0
NOW_S = 1.7e9


def entry(boot_id: str, hours_ago: float, load: Load = HEAVY, clean: bool = False) -> BootEntry:
    return BootEntry(boot_id, NOW_S - 3_600 * hours_ago, load, clean)


def cap(entries: list[BootEntry], boot_id: str = "now", now_s: float = NOW_S) -> Cap | None:
    return cap_after(entries, boot_id, now_s, CAP_S)


def test_a_first_session_has_no_cap() -> None:
    assert cap([]) is None


def test_after_an_unclean_boot_one_step_less_runs_for_the_stated_time() -> None:
    found = cap([entry("a", 2.0)])
    assert found is not None
    assert (found.load, found.left_s) == (below(HEAVY), CAP_S)
    assert found.reason == (
        "the host rebooted uncleanly once within a day, last under 8 games × 256 environments, "
        "batch 2048: one step less for 60 min"
    )


def test_after_an_orderly_end_a_boot_caps_nothing() -> None:
    assert cap([entry("a", 2.0), entry("a", 1.0, clean=True)]) is None


def test_a_session_that_was_killed_within_one_boot_caps_nothing() -> None:
    killed = [entry("now", 2.0), entry("now", 1.0)]
    assert cap(killed) is None


def test_a_session_that_was_killed_and_one_that_ended_in_order_are_a_clean_boot() -> None:
    assert cap([entry("a", 3.0), entry("a", 2.0), entry("a", 1.0, clean=True)]) is None


def test_what_counts_is_the_load_that_ran_last() -> None:
    found = cap([entry("a", 3.0, HEAVY), entry("a", 2.0, LIGHT)])
    assert found is not None and found.load == below(LIGHT)


def test_the_cap_counts_from_the_first_session_after_the_reboot() -> None:
    entries = [entry("a", 2.0), entry("now", 0.5, below(HEAVY))]
    for more in ([], [entry("now", 0.25, below(HEAVY))]):
        found = cap(entries + more)
        assert found is not None
        assert (found.load, found.left_s) == (below(HEAVY), pytest.approx(CAP_S / 2))
    assert cap(entries, now_s=NOW_S + CAP_S / 2) is None


def test_a_cap_outlasts_a_clean_boot() -> None:
    entries = [entry("a", 2.0), entry("b", 0.5), entry("b", 0.4, clean=True)]
    found = cap(entries)
    assert found is not None and found.left_s == pytest.approx(CAP_S / 2)


@pytest.mark.parametrize("sessions", [1, 2, 7])
def test_a_reboot_is_counted_once_however_often_the_run_was_started(sessions: int) -> None:
    entries = [entry("a", 3.0)] * sessions + [entry("b", 2.0)] * sessions
    found = cap(entries)
    assert found is not None and "2 times" in found.reason
    assert found.left_s == 2 * CAP_S


def test_each_further_unclean_boot_of_a_day_doubles_the_time_up_to_a_day() -> None:
    lengths = []
    for reboots in range(1, 9):
        entries = [entry(f"boot-{i}", (reboots - i) / 4) for i in range(reboots)]
        found = cap(entries)
        assert found is not None
        lengths.append(found.left_s)
    assert lengths == [CAP_S * 2**i for i in range(5)] + [LONGEST_CAP_S] * 3


def test_unclean_boots_before_the_last_day_are_forgiven() -> None:
    found = cap([entry("a", 60.0), entry("b", 50.0)])
    assert found is not None and found.left_s == CAP_S


@pytest.mark.parametrize("jump_s", [-3_600.0, -1e6, -NOW_S])
def test_a_clock_that_jumped_back_makes_no_cap_longer(jump_s: float) -> None:
    found = cap([entry("a", 2.0), entry("now", 0.1, below(HEAVY))], now_s=NOW_S + jump_s)
    assert found is not None and 0 < found.left_s <= CAP_S


def test_a_host_that_reboots_every_quarter_of_an_hour_comes_down_to_the_floor() -> None:
    """The first lesson: heavy load rebooted the host for weeks, and every start was as heavy."""
    rule = LoadRule({"heavy": HEAVY}, LIGHT, 8, 2_400.0, 300.0, 15.0)
    entries: list[BootEntry] = []
    loads = []
    for boot in range(30):
        now_s = NOW_S + 900.0 * boot
        state = with_cap(start("heavy", rule), cap_after(entries, str(boot), now_s, CAP_S))
        entries.append(BootEntry(str(boot), now_s, state.load, clean=False))
        loads.append(state.load)
    assert loads[0] == HEAVY
    floor = below(loads[-1])
    assert loads[-1] == floor
    for before, after in pairwise(loads):
        assert after == below(before)
        assert after != before or after == floor


def test_random_journals_never_cap_longer_than_a_day_nor_without_a_reboot() -> None:
    rng = random.Random(5)
    for _ in range(2_000):
        entries = [
            BootEntry(rng.choice("abc"), NOW_S + rng.uniform(-1e5, 1e5), LIGHT, rng.random() < 0.4)
            for _ in range(rng.randrange(8))
        ]
        present = rng.choice("abcd")
        found = cap(entries, present)
        assert found is None or 0 < found.left_s <= LONGEST_CAP_S
        boots = {e.boot_id for e in entries} | {present}
        assert found is None or (len(boots) > 1 and not all(e.clean for e in entries))


def session(run_dir: Path, boot_id: str, *loads: Load, clean: bool = False) -> None:
    journal = BootJournal(run_dir, boot_id)
    for i, load in enumerate(loads):
        journal.note(load, NOW_S + i)
    if clean:
        journal.end(NOW_S + len(loads))
    journal.close()


def test_the_journal_keeps_each_change_of_load_once_and_the_orderly_end(tmp_path: Path) -> None:
    session(tmp_path, "a", LIGHT, LIGHT, HEAVY, HEAVY, clean=True)
    assert BootJournal(tmp_path, "b").earlier == [
        BootEntry("a", NOW_S, LIGHT, clean=False),
        BootEntry("a", NOW_S + 2, HEAVY, clean=False),
        BootEntry("a", NOW_S + 4, HEAVY, clean=True),
    ]


def test_a_session_that_never_ran_leaves_nothing(tmp_path: Path) -> None:
    session(tmp_path, "a", clean=True)
    assert (tmp_path / FILE_NAME).read_bytes() == b""


def test_a_torn_last_line_costs_that_line(tmp_path: Path) -> None:
    session(tmp_path, "a", LIGHT, HEAVY)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        journal = BootJournal(tmp_path, "b")
        assert [e.load for e in journal.earlier] == [LIGHT]
        assert journal.damage is None
        journal.note(HEAVY, NOW_S)
        journal.close()
        assert [e.boot_id for e in BootJournal(tmp_path, "c").earlier] == ["a", "b"]


@pytest.mark.parametrize(
    "line", [b"\0" * 90, b"[]", b'{"boot_id": 3}', b'{"boot_id": "a", "time": 1, "clean": 1}']
)
def test_a_damaged_journal_is_put_aside_and_named_and_stops_nothing(
    tmp_path: Path, line: bytes
) -> None:
    session(tmp_path, "a", LIGHT)
    path = tmp_path / FILE_NAME
    damaged = line + b"\n" + path.read_bytes()
    path.write_bytes(damaged)
    journal = BootJournal(tmp_path, "b")
    assert journal.earlier == []
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*")
    assert aside.read_bytes() == damaged
    assert journal.damage is not None and aside.name in journal.damage
    journal.note(LIGHT, NOW_S)
    assert BootJournal(tmp_path, "c").damage is None


def test_the_kernel_names_the_boot_and_where_it_does_not_nothing_is_capped(tmp_path: Path) -> None:
    boot_id = tmp_path / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    assert present_boot_id(tmp_path) == UNKNOWN_BOOT
    boot_id.write_text("3e84ec42\n")
    assert present_boot_id(tmp_path) == "3e84ec42"
    assert present_boot_id() == present_boot_id()
    assert cap([entry(UNKNOWN_BOOT, 1.0)], UNKNOWN_BOOT) is None
