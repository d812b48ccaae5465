"""Fields for the settings that may change while a run goes on.

Invariant: a field shows what runs, as effective.yaml says it, until a person changes it; only what
a person changed is handed on. Where the tasks that it stands for differ, it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_cluster.config import ConfigError, TaskConfig
from rl_cluster.effective import read_effective
from rl_cluster.levers import LIVE
from rl_cluster.telemetry.summary import read_summary

if TYPE_CHECKING:
    import ipywidgets

_SHARES = ("rollout.epsilon_base",)
_STYLE = {"description_width": "190px"}


class SettingsForm:
    """One field a live setting, in `box`.

    Args:
      run_dir: the run's.
    """

    def __init__(self, run_dir: Path) -> None:
        import ipywidgets

        self._run_dir = run_dir
        self._task: str | None = None
        self._tasks: tuple[int, Mapping[str, TaskConfig]] = (-1, {})
        """When effective.yaml was written (ns), and what it says: reading it takes long."""
        self._fields: dict[str, Any] = {}
        self._running: dict[str, list[Any]] = {}
        self._shown: dict[str, Any] = {}
        """What each field showed before a person touched it; None: nothing, the tasks differ."""
        self.box: ipywidgets.GridBox = ipywidgets.GridBox(
            layout=ipywidgets.Layout(grid_template_columns="repeat(2, 380px)")
        )

    def show(self, task: str | None) -> None:
        """Show a task's settings; None: those of all that are at work, to be changed in all.

        Raises:
          ConfigError: effective.yaml cannot be read, or does not have the task yet.
        """
        self._task, self._fields, self._running, self._shown = task, {}, {}, {}
        self._place()
        self.follow()

    def follow(self) -> None:
        """Let the fields that no person has touched show what runs now.

        Raises:
          ConfigError: as `show`; the fields stay as they are.
        """
        running, touched = self._read(), self.changed()
        for name, values in running.items():
            if values != self._running.get(name):
                self._shown[name] = values[0] if len(values) == 1 else None
                if name not in touched:
                    self._fields[name] = _renewed(self._fields.get(name), name, values)
        self._running = running
        self._fields = {name: self._fields[name] for name in running}
        self._place()

    def changed(self) -> dict[str, Any]:
        """Settings whose field shows something else than what runs."""
        entered = {name: _entered(field) for name, field in self._fields.items()}
        return {
            name: value
            for name, value in entered.items()
            if value is not None and value != self._shown[name]
        }

    def taken(self, settings: Mapping[str, Any]) -> None:
        """These settings are what runs now."""
        self._shown |= settings

    def _read(self) -> dict[str, list[Any]]:
        """Of each setting, the values that it has in the tasks that are shown, each once."""
        configs = self._configs()
        found: dict[str, list[Any]] = {}
        for name in LIVE:
            values = [attrgetter(name)(config) for config in configs if _concerns(name, config)]
            if values:
                found[name] = list(dict.fromkeys(values))
        return found

    def _configs(self) -> list[TaskConfig]:
        tasks = self._effective()
        if self._task is None:
            states = read_summary(self._run_dir)["tasks"]
            ended = {name for name, it in states.items() if it["state"] in ("completed", "failed")}
            at_work = [tasks[name] for name in tasks if name in states and name not in ended]
            return at_work or list(tasks.values())
        if self._task not in tasks:
            raise ConfigError(f"{self._task} has not begun yet: its settings come when it has")
        return [tasks[self._task]]

    def _effective(self) -> Mapping[str, TaskConfig]:
        try:
            written_ns = (self._run_dir / "effective.yaml").stat().st_mtime_ns
        except FileNotFoundError as error:
            raise ConfigError(f"{error.filename} is not there: the run is starting") from error
        if written_ns != self._tasks[0]:
            self._tasks = written_ns, read_effective(self._run_dir).tasks
        return self._tasks[1]

    def _place(self) -> None:
        """Let the box have these fields; others are closed, so that the kernel forgets them."""
        fields, before = tuple(self._fields.values()), self.box.children
        if fields != before:
            self.box.children = fields
        for field in before:
            if field not in fields:
                field.close()


def _concerns(setting: str, config: TaskConfig) -> bool:
    """Whether a task has any use for a setting: fleets have no rollouts, games no stream."""
    group = setting.partition(".")[0]
    return not (group == "rollout" if config.is_fleet else group == "stream")


def _field(setting: str, values: Sequence[float]) -> Any:
    import ipywidgets

    layout = ipywidgets.Layout(width="360px")
    options = {"description": setting, "style": _STYLE, "layout": layout}
    if len(values) > 1:
        return ipywidgets.Text(placeholder=f"differs: {', '.join(map(str, values))}", **options)
    if setting in _SHARES:
        return ipywidgets.FloatSlider(values[0], min=0.0, max=1.0, step=0.01, **options)
    kind = ipywidgets.IntText if isinstance(values[0], int) else ipywidgets.FloatText
    return kind(values[0], **options)


def _renewed(field: Any, setting: str, values: Sequence[float]) -> Any:
    """The field with what runs now, so that nobody types into one that is gone; else another."""
    if field is None or isinstance(field.value, str) or len(values) > 1:
        return _field(setting, values)
    field.value = values[0]
    return field


def _entered(field: Any) -> Any:
    """What a field holds: a number, text that is none (the run says why not), or None."""
    if not isinstance(field.value, str):
        return field.value
    text = field.value.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
