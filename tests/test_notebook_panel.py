"""The panel hands on what a person asks for, to whom it was asked, and says what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from telemetry_samples import run_summary, task_summary
from test_notebook_views import run_dir as run_dir
from test_notebook_views import write_effective

from rl_cluster.notebook.names import Names
from rl_cluster.notebook.panel import Panel
from rl_cluster.notebook.recorded import RecordedRun
from rl_cluster.supervision.admission import AdmissionError
from rl_cluster.telemetry.summary import write_summary


class NotedLevers(RecordedRun):
    """Levers that move nothing and note who pulled them.

    Heavy is refused, no game but Breakout fits, and the disk is full.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.tiers = Names("tier", lambda: ["light", "heavy", "auto"])
        self.pulled: list[tuple[Any, ...]] = []
        self.refused = 0
        self.disk_is_full = False

    def tier(self, name: str) -> None:
        if name == "heavy":
            self.refused += 1
            raise RuntimeError("heavy needs <90 GB>")
        self.pulled.append(("tier", name))

    def pause(self, task: str | None = None) -> None:
        self.pulled.append(("pause", task))

    def resume(self, task: str | None = None) -> None:
        self.pulled.append(("resume", task))

    def change(self, settings: Mapping[str, Any], task: str | None = None) -> None:
        self.pulled.append(("change", dict(settings), task))

    def add(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        if task != "Breakout":
            raise AdmissionError(f"{task} needs 90 GB")
        self.pulled.append(("add", task))

    def remove(self, task: str) -> None:
        self.pulled.append(("remove", task))

    def stop(self) -> None:
        if self.disk_is_full:
            raise OSError("no space left on device")
        self.pulled.append(("stop",))


class Shown:
    """A panel as a person uses it: by what its parts are called."""

    def __init__(self, run_dir: Path) -> None:
        self.levers = NotedLevers(run_dir)
        self.box = Panel(self.levers, run_dir).box

    def parts(self) -> Iterator[Any]:
        waiting = [self.box]
        while waiting:
            part = waiting.pop()
            waiting += getattr(part, "children", ())
            yield part

    def __getitem__(self, name: str) -> Any:
        (part,) = (part for part in self.parts() if getattr(part, "description", "") == name)
        return part

    def says(self, text: str) -> bool:
        return any(text in str(getattr(part, "value", "")) for part in self.parts())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


@pytest.fixture
def panel(run_dir: Path) -> Shown:
    return Shown(run_dir)


def test_nothing_moves_until_a_person_moves_it(panel: Shown) -> None:
    assert panel.levers.pulled == []
    assert panel["tier"].value == "auto" and panel.says("tier medium (asked for auto)")


def test_levers_concern_the_chosen_task_or_all(panel: Shown) -> None:
    panel["Pause"].click()
    panel["task"].value = "Pong"
    panel["Pause"].click()
    panel["Resume"].click()
    panel["Remove"].click()
    assert panel.levers.pulled == [
        ("pause", None), ("pause", "Pong"), ("resume", "Pong"), ("remove", "Pong")
    ]  # fmt: skip


def test_no_task_is_removed_where_none_was_chosen(panel: Shown) -> None:
    panel["Remove"].click()
    assert panel.levers.pulled == [] and panel.says("choose one task")


def test_only_changed_settings_are_applied_and_only_once(panel: Shown) -> None:
    panel["Apply"].click()
    assert panel.levers.pulled == [] and panel.says("nothing is changed")
    panel["task"].value = "Pong"
    panel["learner.batch"].value = 96
    panel["Apply"].click()
    panel["Apply"].click()
    assert panel.levers.pulled == [("change", {"learner.batch": 96}, "Pong")]


def test_a_refusal_is_shown_and_escaped(panel: Shown) -> None:
    panel["tier"].value = "heavy"
    assert panel.says("tier heavy was refused: heavy needs &lt;90 GB&gt;")
    panel["tier"].value = "light"
    assert panel.levers.pulled == [("tier", "light")] and panel.says("tier light: done")


def test_a_tier_that_was_refused_is_not_shown_as_asked_for_and_can_be_chosen_again(
    panel: Shown,
) -> None:
    for times in (1, 2):
        panel["tier"].value = "heavy"
        assert panel["tier"].value == "auto" and panel.levers.refused == times
    assert panel.levers.pulled == []


def test_a_refusal_of_memory_and_a_full_disk_are_shown(panel: Shown) -> None:
    panel["new game"].value = "Pitfall"
    panel["Add"].click()
    assert panel.says("add Pitfall was refused: Pitfall needs 90 GB")
    panel.levers.disk_is_full = True
    panel["stop the whole run"].value = True
    panel["Stop"].click()
    assert panel.says("stop was refused: no space left on device")


def test_a_run_is_stopped_only_by_two_moves(panel: Shown) -> None:
    panel["Stop"].click()
    assert panel.levers.pulled == []
    panel["stop the whole run"].value = True
    panel["Stop"].click()
    assert panel.levers.pulled == [("stop",)]


def test_a_game_is_added_by_its_name(panel: Shown) -> None:
    panel["new game"].value = "Breakout"
    panel["Add"].click()
    assert panel.levers.pulled == [("add", "Breakout")]


def test_a_task_that_has_not_begun_has_no_settings_yet(panel: Shown) -> None:
    panel["task"].value = "Ms-Pacman"
    assert panel.says("Ms-Pacman has not begun yet")


def test_what_was_typed_stays_when_other_tasks_come(run_dir: Path) -> None:
    tasks = {"Pong": task_summary()}
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks))
    panel = Shown(run_dir)
    panel["task"].value = "Pong"
    panel["learner.batch"].value = 96
    tasks["Breakout"] = task_summary()
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks))
    panel.wait_until(lambda: "Breakout" in panel["task"].options)
    assert panel["task"].value == "Pong" and panel["learner.batch"].value == 96


def test_a_click_while_tasks_are_offered_anew_concerns_the_task_that_was_chosen(
    run_dir: Path,
) -> None:
    tasks = {"Pong": task_summary()}
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks))
    panel, offering = Shown(run_dir), threading.Event()
    panel["task"].value = "Pong"

    def linger(_: object) -> None:
        offering.set()
        time.sleep(0.5)

    panel["task"].observe(linger, "value")
    tasks["Breakout"] = task_summary()
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks))
    assert offering.wait(60)
    panel["Pause"].click()
    assert panel.levers.pulled == [("pause", "Pong")]


def test_what_others_change_is_shown_but_not_over_what_was_typed(run_dir: Path) -> None:
    tasks = {"Pong": task_summary()}
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks))
    panel = Shown(run_dir)
    panel["task"].value = "Pong"
    panel["evaluation.period_s"].value = 77.0
    batch = panel["learner.batch"]
    write_effective(run_dir, Pong={"learner": {"batch": 64}, "evaluation": {"period_s": 50.0}})
    tier = {"requested": "light", "effective": "light"}
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks, tier=tier))
    panel.wait_until(lambda: panel["tier"].value == "light")
    tier = {"requested": "of_another_configuration", "effective": "light"}
    write_summary(run_dir, run_summary(updated_at=time.time(), tasks=tasks, tier=tier))
    panel.wait_until(lambda: panel["tier"].value == "of_another_configuration")
    assert panel["learner.batch"] is batch, "somebody may be about to type there"
    assert batch.value == 64 and panel["evaluation.period_s"].value == 77.0
    assert panel.levers.pulled == [], "what others asked for is not asked for again"
    panel["Apply"].click()
    assert panel.levers.pulled == [("change", {"evaluation.period_s": 77.0}, "Pong")]
