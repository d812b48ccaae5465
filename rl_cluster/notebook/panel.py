"""The panel of a live run in a notebook: its state, and the levers that the command line has.

Invariant: a lever moves only when a person moves it, and what the run answers, a refusal too, is
shown. State comes from summary.json, so that looking asks the run for nothing. What a person chose
is read and offered anew under one lock, since a thread of its own looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rl_cluster.config import ConfigError
from rl_cluster.notebook.extra import needs
from rl_cluster.notebook.names import Names
from rl_cluster.notebook.refresh import keep_fresh
from rl_cluster.notebook.settings_form import SettingsForm
from rl_cluster.notebook.status import next_look_s, status_html
from rl_cluster.supervision.admission import AdmissionError
from rl_cluster.telemetry.summary import Summary

if TYPE_CHECKING:
    import ipywidgets

_PERIOD_S = 2.0
_ALL = "all tasks"


class Levers(Protocol):
    """What the panel moves: a run's handle."""

    tasks: Names
    tiers: Names

    def summary(self) -> Summary:
        """State and figures."""

    def tier(self, name: str) -> None:
        """Ask for a tier."""

    def pause(self, task: str | None = None) -> None:
        """Let a task rest, or all."""

    def resume(self, task: str | None = None) -> None:
        """Let it go on."""

    def change(self, settings: Mapping[str, Any], task: str | None = None) -> None:
        """Change live settings."""

    def add(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        """Take a task into the run."""

    def remove(self, task: str) -> None:
        """Let a task leave it."""

    def stop(self) -> None:
        """End the run."""


class Panel:
    """The widgets of one run, in `box`.

    Args:
      levers: of the run.
      run_dir: where its files are.

    Raises:
      ModuleNotFoundError: ipywidgets is not installed.
      FileNotFoundError: the run has not written a summary yet.
    """

    def __init__(self, levers: Levers, run_dir: Path) -> None:
        with needs("notebook"):
            import ipywidgets
        self._levers, self._run_dir, self._lock = levers, run_dir, threading.RLock()
        self._status, self._answer = ipywidgets.HTML(), ipywidgets.HTML()
        self._task = ipywidgets.Dropdown(description="task", options=[_ALL])
        self._form = SettingsForm(run_dir)
        self._seen_tier = self._requested_tier
        """As it was last read: what a person has just asked for is not in the file yet."""
        self._tier = ipywidgets.SelectionSlider(
            description="tier",
            options=list(levers.tiers),
            value=self._seen_tier,
            continuous_update=False,  # what it is dragged across was not asked for
        )
        self._new = ipywidgets.Text(description="new game", placeholder="Breakout")
        self._sure = ipywidgets.Checkbox(description="stop the whole run", indent=False)
        self.box: ipywidgets.VBox = ipywidgets.VBox(
            [
                self._status,
                self._tier,
                _row(self._task, *self._task_buttons()),
                self._form.box,
                _row(_button("Apply", self._apply, "of the task above, or of all"), self._answer),
                _row(self._new, _button("Add", self._add, "with the first task's settings")),
                _row(self._sure, _button("Stop", self._stop, "saves everything and ends the run")),
            ]
        )
        self._tier.observe(self._ask_for_tier, "value")
        self._task.observe(self._show_settings, "value")
        self._refresh()
        self._show_settings()
        keep_fresh(f"panel of {run_dir}", _PERIOD_S, self._refresh)

    @property
    def _chosen(self) -> str | None:
        with self._lock:
            return None if self._task.value == _ALL else self._task.value

    @property
    def _requested_tier(self) -> str:
        return self._levers.summary()["tier"]["requested"]

    def _task_buttons(self) -> list[Any]:
        return [
            _button("Pause", lambda: self._do("pause", lambda: self._levers.pause(self._chosen))),
            _button(
                "Resume", lambda: self._do("resume", lambda: self._levers.resume(self._chosen))
            ),
            _button("Remove", self._remove, "it saves and leaves the run; its files stay"),
        ]

    def _ask_for_tier(self, change: Mapping[str, Any]) -> None:
        name = change["new"]
        if not self._do(f"tier {name}", lambda: self._levers.tier(name)):
            self._show_tier(self._requested_tier)

    def _show_settings(self, _: Mapping[str, Any] | None = None) -> None:
        try:
            with self._lock:
                self._form.show(self._chosen)
        except ConfigError as error:
            self._say(str(error))

    def _apply(self) -> None:
        with self._lock:
            task, changed = self._chosen, self._form.changed()
        if changed:
            self._do(f"set {', '.join(changed)}", lambda: self._change(changed, task))
        else:
            self._say("nothing is changed: enter another value first")

    def _change(self, settings: Mapping[str, Any], task: str | None) -> None:
        self._levers.change(settings, task)
        with self._lock:
            self._form.taken(settings)

    def _remove(self) -> None:
        if (task := self._chosen) is None:
            self._say("choose one task to remove")
        else:
            self._do(f"remove {task}", lambda: self._levers.remove(task))

    def _add(self) -> None:
        task = self._new.value
        self._do(f"add {task}", lambda: self._levers.add(task))

    def _stop(self) -> None:
        if self._sure.value:
            self._do("stop", self._levers.stop)
        else:
            self._say("tick the box beside it first")

    def _do(self, what: str, lever: Callable[[], None]) -> bool:
        """Move a lever and say what came of it; a refusal is an answer too.

        Returns:
          Whether it was done.
        """
        self._say(f"{what} …")
        try:
            lever()
        except (AdmissionError, OSError, RuntimeError, ValueError) as error:
            self._say(f"{what} was refused: {error}")
            return False
        self._say(f"{what}: done")
        return True

    def _say(self, text: str) -> None:
        self._answer.value = escape(text)

    def _refresh(self) -> float | None:
        wait_s = next_look_s(self._run_dir, _PERIOD_S)
        self._status.value = status_html(self._run_dir)
        names, tier = [_ALL, *self._levers.tasks], self._requested_tier
        with self._lock:
            if names != list(self._task.options):
                self._offer(names)
            with suppress(ConfigError):  # it has been said, or the run starts anew
                self._form.follow()
        if tier != self._seen_tier:
            self._show_tier(tier)
        return None if self.box.comm is None else wait_s

    def _show_tier(self, name: str) -> None:
        """Show a tier that is asked for already."""
        with self._lock:
            self._seen_tier = name
            self._tier.unobserve(self._ask_for_tier, "value")
            if name not in self._tier.options:  # the run was resumed with other tiers
                self._tier.options = [*self._tier.options, name]
            self._tier.value = name
            self._tier.observe(self._ask_for_tier, "value")

    def _offer(self, names: list[str]) -> None:
        """Offer other tasks; what was typed for the one that is chosen stays, if it does."""
        chosen = self._task.value
        self._task.unobserve(self._show_settings, "value")
        self._task.options = names
        self._task.value = chosen if chosen in names else _ALL
        self._task.observe(self._show_settings, "value")
        if self._task.value != chosen:
            self._show_settings()


def _row(*parts: Any) -> Any:
    import ipywidgets

    return ipywidgets.HBox(parts)


def _button(text: str, action: Callable[[], object], tooltip: str = "") -> Any:
    import ipywidgets

    button = ipywidgets.Button(description=text, tooltip=tooltip)
    button.on_click(lambda _: action())
    return button
