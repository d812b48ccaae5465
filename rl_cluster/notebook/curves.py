"""Learning curves as a picture, drawn once or again and again while a run goes on.

Invariant: metrics.jsonl is read once, whatever its size and however often it is drawn: each look
goes on behind the last whole line of the one before, whichever thread looks.
"""

from __future__ import annotations

import io
import json
import math
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_cluster.notebook.extra import needs
from rl_cluster.notebook.refresh import keep_fresh
from rl_cluster.notebook.status import next_look_s
from rl_cluster.telemetry import writers
from rl_cluster.telemetry.charts import Curve, Point
from rl_cluster.telemetry.formatting import short_count
from rl_cluster.telemetry.metrics import metric_named

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BESIDE = {
    "evaluation_mean_return": ("evaluation_random_mean_return", "random"),
    "samples_per_insert_actual": ("samples_per_insert_wanted", "wanted"),
}
"""What a metric is compared with, dashed."""
_COLUMNS = 2
_SIZE_INCHES = (4.6, 2.7)
_DPI = 90


class Curves:
    """A picture of some metrics, one chart each; a notebook shows it where a cell ends with it.

    Args:
      run_dir: the run's.
      metrics: names in the table of metrics.
      task: None: a line for each task.

    Raises:
      ValueError: there is no such metric, or it is the run's and no task's.
    """

    def __init__(self, run_dir: Path, metrics: Sequence[str], task: str | None) -> None:
        for name in metrics:
            if metric_named(name).scope != "task":
                raise ValueError(f"{name!r} is no metric of a task: look at it in run.frame()")
        self._metrics, self._task, self._run_dir = tuple(metrics), task, run_dir
        drawn = {*metrics, *(_BESIDE[name][0] for name in metrics if name in _BESIDE)}
        self._reader = CurveReader(run_dir / writers.FILE_NAME, drawn)

    def figure(self) -> Figure:
        """Draw what is known now; the figure may be changed before it is shown.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
        """
        with needs("notebook"):
            from matplotlib.figure import Figure
        curves = self._reader.read()
        columns = min(_COLUMNS, len(self._metrics))
        rows = math.ceil(len(self._metrics) / columns)
        size = (_SIZE_INCHES[0] * columns, _SIZE_INCHES[1] * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for metric, axes in zip(self._metrics, grid.flat, strict=False):
            self._draw(metric, curves, axes)
        for axes in grid.flat[len(self._metrics) :]:
            axes.set_axis_off()
        return figure

    def live(self, period_s: float = 5.0) -> ipywidgets.Image:
        """A picture that is drawn anew every so often, until the run ends or it is closed.

        Raises:
          ModuleNotFoundError: ipywidgets or matplotlib is not installed.
        """
        with needs("notebook"):
            import ipywidgets
        image = ipywidgets.Image(value=self._repr_png_(), format="png")
        name = f"curves of {self._run_dir}: {self._metrics}, {self._task}"

        def refresh() -> float | None:
            wait_s = next_look_s(self._run_dir, period_s)
            image.value = self._repr_png_()
            return None if image.comm is None else wait_s

        keep_fresh(name, period_s, refresh)
        return image

    def _repr_png_(self) -> bytes:
        return png_of(self.figure())

    def _draw(self, metric: str, curves: dict[tuple[str, str], list[Point]], axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        other, label = _BESIDE.get(metric, ("", ""))
        # By name, so that a task has one colour in all charts.
        colours = {task: f"C{n}" for n, task in enumerate(sorted({task for task, _ in curves}))}
        for task, colour in colours.items():
            if self._task not in (None, task) or (task, metric) not in curves:
                continue
            _line(axes, curves[task, metric], colour, label=task)
            if (task, other) in curves:
                beside = f"{label}, {task}"
                _line(axes, curves[task, other], colour, label=beside, linestyle="--", linewidth=1)
        axes.set_title(metric, fontsize=10)
        axes.set_xlabel("env frames", fontsize=8)
        axes.set_ylabel(metric_named(metric).unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda frames, _: short_count(frames))
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)


class CurveReader:
    """Some curves in a growing metrics.jsonl.

    Args:
      path: the file; it may not be there yet.
      metrics: names of those that are wanted.
    """

    def __init__(self, path: Path, metrics: Collection[str]) -> None:
        self._path, self._metrics, self._read_bytes = path, metrics, 0
        self._curves: dict[tuple[str, str], Curve] = defaultdict(Curve)
        self._lock = threading.Lock()

    def read(self) -> dict[tuple[str, str], list[Point]]:
        """Points by task and metric, with what was written since the last look of any thread."""
        with self._lock:
            if self._path.exists():
                self._read_on()
            return {key: curve.points for key, curve in self._curves.items()}

    def _read_on(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                self._add(json.loads(line))

    def _add(self, row: dict[str, Any]) -> None:
        task, frames = row.get("task"), row.get("env_frames")
        if task is None or frames is None:
            return
        for metric in self._metrics:
            if (value := row.get(metric)) is not None:
                self._curves[task, metric].add(frames, value)


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _line(axes: Axes, points: Sequence[Point], colour: str, **style: Any) -> None:
    xs, ys = zip(*points, strict=True)
    marker = "o" if len(xs) == 1 else None
    axes.plot(xs, ys, color=colour, marker=marker, **style)
