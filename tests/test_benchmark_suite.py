"""The benchmark suite's own machinery: sides in turn, ratios with intervals, one file."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import bench
import peers
import pytest
import results
from plan import Plan
from results import Row, compare, interval, missing, pairs, write
from sides import BenchmarkError, ServedSide, Tree, Window

COUNTING = """
from serve import arguments, serve
import time
print("a library prints what it likes")
asked = arguments()
def work():
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass
    return asked["units"]
serve(work, ("psutil",), lambda: {"asked": asked["units"]})
"""
ENDING = """
import sys
print("this went wrong", file=sys.stderr)
sys.exit(3)
"""
DYING = """
from serve import serve
import os
serve(lambda: os.kill(os.getpid(), 9), ())
"""


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    path = tmp_path / "side.py"
    path.write_text(request.param, encoding="utf-8")
    return str(path)


def side(script: str, **asked: float) -> ServedSide:
    return ServedSide(Path(sys.executable), script, asked)


def window(amount: float, wall_s: float = 1.0, cpu_s: float = 2.0) -> Window:
    return Window(amount, wall_s, cpu_s, 0.1)


@pytest.mark.parametrize("script", [COUNTING], indirect=True)
def test_a_side_works_only_when_asked_and_its_cpu_time_is_counted(script: str) -> None:
    with side(script, units=3) as counting:
        assert counting.versions.keys() == {"psutil"}
        assert counting.facts() == {"asked": 3}
        before = counting.tree.cpu_s()
        time.sleep(0.3)
        assert counting.tree.cpu_s() - before < 0.1
        done = counting.turn(0.3)
    assert done.amount > 0 and done.amount % 3 == 0
    assert done.wall_s >= 0.3
    assert done.cpu_s > 0
    assert done.amount / 3 * 0.01 <= done.cpu_s + 0.05


@pytest.mark.parametrize("script", [COUNTING], indirect=True)
def test_two_sides_take_turns_a_b_b_a(script: str) -> None:
    with side(script, units=2) as us, side(script, units=5) as peer:
        turns = pairs(us, peer, 0.1, 2)
    assert len(turns) == 4
    assert all(ours.amount % 2 == 0 and theirs.amount % 5 == 0 for ours, theirs in turns)


@pytest.mark.parametrize("script", [COUNTING], indirect=True)
def test_the_end_of_a_side_ends_its_process(script: str) -> None:
    with side(script, units=1) as counting:
        processes = counting.tree.processes()
    assert processes and not any(process.is_running() for process in processes)


@pytest.mark.parametrize("script", [ENDING], indirect=True)
def test_a_side_that_does_not_start_says_why(script: str) -> None:
    with pytest.raises(BenchmarkError, match="this went wrong"):
        side(script)


@pytest.mark.parametrize("script", [DYING], indirect=True)
def test_a_side_that_dies_at_work_is_an_error_and_not_a_figure(script: str) -> None:
    with side(script) as dying, pytest.raises(BenchmarkError, match="no answer"):
        dying.turn(0.1)


@pytest.mark.parametrize("script", [COUNTING], indirect=True)
def test_a_frozen_tree_does_nothing_until_it_is_thawed(script: str) -> None:
    with side(script, units=1) as counting:
        tree = Tree(counting.tree.processes()[0].pid)
        tree.signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + 10
        while not all(process.status() == "stopped" for process in tree.processes()):
            assert time.monotonic() < deadline_s
        tree.signal(signal.SIGCONT)
        assert counting.turn(0.05).amount > 0


def test_an_interval_holds_the_median_and_widens_with_the_spread() -> None:
    low, high = interval([2.0, 2.1, 1.9, 2.05, 1.95])
    assert 1.9 <= low <= 2.0 <= high <= 2.1
    wider = interval([1.0, 3.0, 2.0, 2.5, 1.5])
    assert wider[1] - wider[0] > high - low
    assert interval([2.0]) == (2.0, 2.0)


def test_ratios_are_of_neighbouring_turns_so_that_drift_cancels_out() -> None:
    """The machine becomes ten times slower; the ratio of each pair stays 2."""
    turns = [(window(20.0), window(10.0)), (window(2.0), window(1.0))]
    wall, cpu = compare("B0", "setting", "steps", "peer 1", turns)
    assert (wall.ratio, wall.ratio_low, wall.ratio_high) == (2.0, 2.0, 2.0)
    assert (wall.us, wall.peer_value, wall.unit) == (11.0, 5.5, "steps/s")
    assert (cpu.us, cpu.unit) == (5.5, "steps/CPU s")


def test_the_share_of_the_limit_is_of_neighbouring_turns_as_well() -> None:
    limit = [(window(9.0), window(10.0)), (window(18.0), window(20.0))]
    row = compare("B0", "setting", "steps", "peer 1", [(window(1.0), window(1.0))], limit)[0]
    assert (row.limit, row.of_limit) == (15.0, pytest.approx(0.9))


def test_a_peer_that_is_missing_has_its_row_with_the_reason() -> None:
    row = missing("B0", "setting", "steps/s", "peer 1", "Traceback\n  ...\nImportError: no such\n")
    assert (row.peer, row.peer_value, row.ratio) == ("peer 1", None, None)
    assert row.note == "ImportError: no such"


def test_what_is_written_is_what_other_programs_read(tmp_path: Path) -> None:
    rows = compare("B0", "setting", "steps", "peer 1", [(window(2.0), window(1.0))])
    rows.append(missing("B0", "setting", "steps/s", "peer 2", "not installed"))
    path = tmp_path / "results" / "latest.json"
    write(path, rows, {"torch": "2.13.0"})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "versions", "load", "rows"} <= read.keys()
    keys = "row setting us unit peer peer_value ratio ratio_low ratio_high limit of_limit"
    assert all(set(keys.split()) <= row.keys() for row in read["rows"])
    assert read["rows"][0]["raw"]["us"][0]["amount"] == 2.0
    assert read["versions"]["torch"] == "2.13.0"
    assert read["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_others_on_the_machine_are_told_of() -> None:
    busy = Window(1.0, 1.0, 1.0, 1.5)
    assert results.load(compare("B0", "", "steps", "p", [(window(1.0), window(1.0))]))["quiet"]
    assert not results.load(compare("B0", "", "steps", "p", [(busy, busy)]))["quiet"]


@pytest.mark.parametrize("name", sorted(bench.MODULES))
def test_every_row_of_the_suite_has_a_module_that_measures(name: str) -> None:
    assert callable(importlib.import_module(bench.MODULES[name]).measure)


def test_every_peer_states_the_versions_that_it_is_measured_at() -> None:
    for peer in bench.PEERS:
        lines = (peers.HERE / "peers" / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
        assert any("==" in line for line in lines), peer


def test_a_peer_that_cannot_be_installed_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "nobody.txt").write_text("./no-such-directory\n", encoding="utf-8")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path / "environments")
    missing_peers = peers.install(["nobody"])
    assert "no-such-directory" in missing_peers["nobody"]


def test_a_row_that_fails_is_a_row_with_its_reason_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("failing_row")
    module.measure = lambda plan: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_row", module)
    monkeypatch.setitem(bench.MODULES, "b0", "failing_row")
    rows, whole = bench.measured("b0", Plan(quick=True, scratch=tmp_path))
    assert not whole
    assert [(row.row, row.note) for row in rows] == [("b0", "ZeroDivisionError: division by zero")]


def test_the_table_shows_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = compare("B0 first", "setting", "steps", "peer 1", [(window(2.0), window(1.0))])
    results.show([*rows, Row("B9 last", "other", "ms", 3.0, "", note="why")])
    shown = capsys.readouterr().out
    assert "B0 first" in shown and "B9 last" in shown and "2.00" in shown
