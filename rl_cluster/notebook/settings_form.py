"""Fields for the settings that may change while a run goes on.

Invariant: a field shows what runs, as effective.yaml says it, until a person changes it; only what
a person changed is handed on.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_cluster.config import ConfigError, TaskConfig
from rl_cluster.effective import read_effective
from rl_cluster.levers import LIVE

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
        self._fields: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self.box: ipywidgets.GridBox = ipywidgets.GridBox(
            layout=ipywidgets.Layout(grid_template_columns="repeat(2, 380px)")
        )

    def show(self, task: str | None) -> None:
        """Show a task's settings; None: the first task's, to be changed in all.

        Raises:
          ConfigError: effective.yaml cannot be read, or does not have the task yet.
        """
        tasks = read_effective(self._run_dir).tasks
        config = next(iter(tasks.values())) if task is None else tasks.get(task)
        if config is None:
            raise ConfigError(f"{task} has not begun yet: choose it again in a few seconds")
        names = [name for name in LIVE if _concerns(name, config)]
        self._shown = {name: attrgetter(name)(config) for name in names}
        self._fields = {name: _field(name, value) for name, value in self._shown.items()}
        self.box.children = tuple(self._fields.values())

    def changed(self) -> dict[str, Any]:
        """Settings whose field shows something else than what runs."""
        values = {name: field.value for name, field in self._fields.items()}
        return {name: value for name, value in values.items() if value != self._shown[name]}

    def taken(self) -> None:
        """What the fields show is what runs now."""
        self._shown |= self.changed()


def _concerns(setting: str, config: TaskConfig) -> bool:
    """Whether a task has any use for a setting: fleets have no rollouts, games no stream."""
    group = setting.partition(".")[0]
    return not (group == "rollout" if config.is_fleet else group == "stream")


def _field(setting: str, value: float) -> Any:
    import ipywidgets

    layout = ipywidgets.Layout(width="360px")
    options = {"value": value, "description": setting, "style": _STYLE, "layout": layout}
    if setting in _SHARES:
        return ipywidgets.FloatSlider(min=0.0, max=1.0, step=0.01, **options)
    kind = ipywidgets.IntText if isinstance(value, int) else ipywidgets.FloatText
    return kind(**options)
