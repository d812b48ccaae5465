"""A run's load between two ticks: what a person asks for is taken, and a restart goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rl_cluster.boot_journal import FILE_NAME, BootJournal, present_boot_id
from rl_cluster.config import LoadConfig, PressureConfig, TierConfig
from rl_cluster.load_control import LoadControl
from rl_cluster.supervision.load import Load

NO_PRESSURE = PressureConfig(
    memory_available_low=0.0,
    memory_available_high=0.0,
    memory_stall_high=1.0,
    memory_stall_low=1.0,
    disk_free_low_bytes=0,
    disk_free_high_bytes=0,
    temperature_high_c=1e6,
    temperature_low_c=1e6,
)
CONFIG = LoadConfig(
    tiers={"two": TierConfig(2, 8, 16), "three": TierConfig(3, 8, 32)},
    slice_s=100.0,
    pressure=NO_PRESSURE,
)
CUSTOM = Load(4, 32, 64)
GAMES = {"A": 0, "B": 0, "C": 0, "D": 0}


def control(
    run_dir: Path, requested: str = "two", record: Mapping[str, Any] | None = None, most: int = 4
) -> LoadControl:
    return LoadControl(run_dir, CONFIG, CUSTOM, most, lambda pid: False, requested, record)


def tick(
    load: LoadControl, now_s: float, at_work: set[str] | None = None, custom: Load = CUSTOM
) -> str | None:
    working = set(load.active) if at_work is None else at_work
    return load.tick(now_s, GAMES, working, custom, None)


def test_a_tier_begins_with_all_of_it(tmp_path: Path) -> None:
    load = control(tmp_path)
    assert tick(load, 0.0) is None
    assert (load.effective, load.active) == ("two", {"A", "B"})


def test_what_a_person_asks_for_is_there_at_the_next_tick(tmp_path: Path) -> None:
    load = control(tmp_path)
    tick(load, 0.0)
    load.request("three")
    reason = tick(load, 1.0)
    assert reason is not None and "three was asked for" in reason
    assert (load.effective, load.active) == ("three", {"A", "B", "C"})
    with pytest.raises(ValueError, match="custom, auto, two, three"):
        load.request("four")


def test_no_more_tasks_run_than_fit_the_machine(tmp_path: Path) -> None:
    load = control(tmp_path, "three", most=1)
    tick(load, 0.0)
    assert load.active == {"A"}


def test_custom_takes_what_the_tasks_configure_now(tmp_path: Path) -> None:
    """As where a game was added, or a person has set a larger batch."""
    load = control(tmp_path, "custom")
    assert tick(load, 0.0) is None
    larger = Load(5, 32, 128)
    load.request("custom")
    assert tick(load, 1.0, custom=larger) is not None
    assert (load.state.load, load.effective) == (larger, "custom")
    assert tick(load, 2.0, custom=CUSTOM) is not None, "less is taken at once"
    assert load.state.load == CUSTOM


def test_a_slice_lasts_from_the_first_work_on(tmp_path: Path) -> None:
    load = control(tmp_path)
    for second in range(0, 500, 50):
        tick(load, float(second), at_work=set())
        assert load.active == {"A", "B"}
    tick(load, 500.0)
    tick(load, 540.0)
    assert load.active == {"A", "B"}
    tick(load, 560.0)
    assert load.active == {"C", "D"}


@pytest.mark.parametrize("at_s", [40.0, 160.0])
def test_a_later_supervisor_goes_on_where_the_one_before_was(tmp_path: Path, at_s: float) -> None:
    """Its watch begins at 0 again."""
    first, second_s = control(tmp_path), 0.0
    while second_s < at_s:
        tick(first, second_s)
        second_s += 10.0
    record = json.loads(json.dumps(first.record, allow_nan=False))
    later = control(tmp_path, "three", record)
    assert later.record == record and later.active == first.active
    assert tick(later, 0.0) is None  # it cannot know how long nobody watched
    assert later.active == first.active and later.effective == "two"
    assert [p["slice_s"] for p in later.record["places"]] == [
        p["slice_s"] for p in first.record["places"]
    ]


def test_whoever_comes_and_goes_the_slots_are_filled(tmp_path: Path) -> None:
    load = control(tmp_path)
    tick(load, 0.0)
    load.tick(1.0, {"B": 0, "C": 0}, {"B"}, CUSTOM, None)
    assert load.active == {"B", "C"}
    load.tick(2.0, {"C": 0}, {"C"}, CUSTOM, None)
    assert load.active == {"C"}


def test_the_boot_journal_tells_an_end_from_a_cut(tmp_path: Path) -> None:
    load = control(tmp_path)
    tick(load, 0.0)
    assert [entry.clean for entry in BootJournal(tmp_path, "boot").earlier] == [False]
    load.end()
    assert [entry.clean for entry in BootJournal(tmp_path, "boot").earlier] == [False, True]


def rebooted(run_dir: Path) -> None:
    """Let the journal of a run say that all of it was under an earlier boot."""
    path = run_dir / FILE_NAME
    path.write_text(path.read_text().replace(present_boot_id(), "an earlier boot"))


def test_who_goes_on_after_an_unclean_reboot_begins_below_what_ran_then(tmp_path: Path) -> None:
    """As `rl-cluster keep` does, in the same session: nothing else of its load has changed."""
    first = control(tmp_path, "three")
    tick(first, 0.0)
    record = first.record
    assert len(control(tmp_path, "three", record).active) == 3, "its supervisor alone died"
    rebooted(tmp_path)
    capped = control(tmp_path, "three", record)
    assert capped.state.cap is not None
    tick(capped, 0.0)
    assert len(capped.active) == 2
    again = control(tmp_path, "three", capped.record)
    assert again.state == capped.state, "one reboot counts once"


def test_after_a_clean_end_a_reboot_costs_nothing(tmp_path: Path) -> None:
    first = control(tmp_path, "three")
    tick(first, 0.0)
    first.end()
    rebooted(tmp_path)
    later = control(tmp_path, "three", first.record)
    assert later.state.cap is None and len(later.active) == 3


def test_a_tier_with_more_places_than_the_cluster_has_room_for_wants_more(tmp_path: Path) -> None:
    assert control(tmp_path, "two", most=1).wants_more_games
    assert not control(tmp_path, "two", most=2).wants_more_games
    assert control(tmp_path, "auto", most=2).wants_more_games, "it may become three"
