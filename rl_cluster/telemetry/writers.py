"""Where the figures of a run go: metrics.jsonl, TensorBoard and Weights & Biases.

Invariant: one writer per run, and every row is checked against the table of metrics before any
place receives it. A resumed run appends to what is there and keeps its W&B identities.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rl_cluster.telemetry.jsonl import JsonLines
from rl_cluster.telemetry.metrics import metric_named

FILE_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """Figures of one task, or of the run, at one moment."""

    time_s: float
    """Unix seconds."""
    wall_s: float
    """Seconds the run has been at work."""
    task: str | None
    """None: figures of the whole run."""
    env_steps: int | None
    """Steps of the task; None for the run."""
    values: Mapping[str, float | None]
    """By metric name; None or not finite: not known."""

    @property
    def known_values(self) -> dict[str, float]:
        """The values that are finite numbers."""
        return {
            name: float(value)
            for name, value in self.values.items()
            if value is not None and math.isfinite(value)
        }

    def check_valid(self) -> None:
        """Raise ValueError for an unknown metric, a wrong scope, or no place on the x-axis."""
        scope = "run" if self.task is None else "task"
        for name in self.values:
            metric = metric_named(name)
            if metric.scope != scope:
                raise ValueError(
                    f"metric {name!r} belongs to a {metric.scope}, but the row is of "
                    f"{'the run' if self.task is None else f'task {self.task!r}'}"
                )
        has_place = self.env_steps is not None and self.values.get("env_frames") is not None
        if self.task is not None and not has_place:
            raise ValueError(
                f"a row of task {self.task!r} needs env_steps and the value env_frames: charts are "
                "drawn against them"
            )


class Sink(Protocol):
    """One place that rows go to."""

    def write(self, row: Row) -> None:
        """Take one valid row."""

    def flush(self) -> None:
        """Hand on what is still held back."""

    def close(self) -> None:
        """Flush and let go; harmless when repeated."""


class MetricsWriter:
    """Checks rows and hands them to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(
        self,
        time_s: float,
        wall_s: float,
        task: str | None,
        env_steps: int | None,
        values: Mapping[str, float | None],
    ) -> None:
        """Write one row; see `Row` for units.

        Raises:
          ValueError: an unknown metric (the nearest is named) or one of the wrong scope.
          OSError: the disk is full or gone.
        """
        row = Row(time_s, wall_s, task, env_steps, values)
        row.check_valid()
        for sink in self._sinks:
            sink.write(row)

    def flush(self) -> None:
        """Make what was written visible to readers."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close every sink, also when one of them fails; harmless when repeated."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


@dataclass(frozen=True)
class WandbOptions:
    """What Weights & Biases is told about a run."""

    project: str
    group: str
    """The run's name; its tasks are the members of the group."""
    ids: Mapping[str, str]
    """Task to W&B run id. Kept in the checkpoint, so that a resumed task goes on in its run."""
    config: Mapping[str, Any]
    """Configuration shown beside the charts."""


def open_writer(
    run_dir: Path, *first: Sink, tensorboard: bool = False, wandb: WandbOptions | None = None
) -> MetricsWriter:
    """Open every place that a run writes to; metrics.jsonl always.

    Args:
      run_dir: the run's directory.
      first: further places, which get a row before a full disk can refuse it.
      tensorboard: whether to write for TensorBoard.
      wandb: how to write to W&B; None: not at all.

    Raises:
      ModuleNotFoundError: an extra is not installed; the message is the line that installs it.
      WandbError: W&B does not accept the run.
    """
    with ExitStack() as opened:
        sinks: list[Sink] = [*first, JsonlSink(run_dir)]
        opened.callback(sinks[-1].close)
        if tensorboard:
            sinks.append(TensorBoardSink(run_dir))
            opened.callback(sinks[-1].close)
        if wandb is not None:
            sinks.append(WandbSink(run_dir, wandb))
        opened.pop_all()
    return MetricsWriter(sinks)


class JsonlSink:
    """RUN/metrics.jsonl: one line a row, with the system when `write` returns."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / FILE_NAME)

    def write(self, row: Row) -> None:
        """Append the row; `wall_s` and `env_steps` are columns of every row."""
        columns = {
            "time": row.time_s,
            "wall_s": row.wall_s,
            "task": row.task,
            "env_steps": row.env_steps,
        }
        self._lines.append({**row.values, **columns})

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


_TENSORBOARD_ROOM_BYTES = 1 << 20


class TensorBoardSink:
    """RUN/tensorboard/TASK against env_frames, and RUN/tensorboard for the run against seconds."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "tensorboard"
        self._library = _extra("tensorboard.summary", "tensorboard")
        self._writers: dict[str | None, Any] = {}
        self._described: set[tuple[str | None, str]] = set()

    def write(self, row: Row) -> None:
        """Add one point to the chart of every known value.

        Raises:
          OSError: the disk is full or gone; the charts go on in another file once there is room.
        """
        writer = self._writer(row.task)
        try:
            for name, value in row.known_values.items():
                metric = metric_named(name)
                writer.add_scalar(
                    metric.tag,
                    value,
                    _step(row),
                    wall_time=row.time_s,
                    description=self._description(row.task, name),
                )
        except OSError:
            self._give_up(row.task)
            raise

    def flush(self) -> None:
        """Write what TensorBoard's own thread still holds; raises as `write` does."""
        for task, writer in list(self._writers.items()):
            try:
                writer.flush()
            except OSError:
                self._give_up(task)
                raise

    def _give_up(self, task: str | None) -> None:
        """Leave a file whose end is torn: its writer repeats the first error for ever."""
        with suppress(OSError):
            self._writers.pop(task).close()
        self._described = {described for described in self._described if described[0] != task}

    def close(self) -> None:
        """Close every event file."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, task: str | None) -> Any:
        if task not in self._writers:
            self._check_room()
            directory = self._directory / task if task else self._directory
            self._writers[task] = self._library.Writer(str(directory))
        return self._writers[task]

    def _check_room(self) -> None:
        """Begin no file where it would be torn at once: a full disk is tried again every row."""
        self._directory.mkdir(exist_ok=True)
        if shutil.disk_usage(self._directory).free < _TENSORBOARD_ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))

    def _description(self, task: str | None, name: str) -> str | None:
        # TensorBoard reads the description of a tag's first event only, and repeats it in each.
        if (task, name) in self._described:
            return None
        self._described.add((task, name))
        return metric_named(name).description


class WandbError(RuntimeError):
    """Weights & Biases refused a run or could not be reached."""


class WandbSink:
    """One W&B run per task under RUN/wandb, grouped by the run; offline unless logged in.

    Figures of the run stand in every task's W&B run. W&B takes rows only in order: what a resumed
    task does again before it passes the newest step sent is in metrics.jsonl alone.
    """

    def __init__(self, run_dir: Path, options: WandbOptions) -> None:
        self._library = _extra("wandb", "wandb")
        self._run_values: dict[str, float] = {}
        self.mode = wandb_mode()
        run_dir.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, Any] = {}
        for task, run_id in options.ids.items():
            self._runs[task] = self._open(run_dir, options, task, run_id)

    def write(self, row: Row) -> None:
        """Log one row of a task; a row of the run is kept for the tasks' next rows."""
        if row.task is None:
            self._run_values = _tagged(row)
            return
        run, step = self._runs[row.task], _step(row)
        if step < run.step:
            return
        try:
            run.log({**self._run_values, **_tagged(row), _WALL_TAG: row.wall_s}, step=step)
        except self._library.Error as error:
            raise WandbError(f"W&B took no row of {row.task}: {error}") from error

    def flush(self) -> None:
        """W&B's own process writes by itself."""

    def close(self) -> None:
        """Finish every run and end W&B's process."""
        if self._runs:
            while self._runs:
                self._runs.popitem()[1].finish()
            self._library.teardown()

    def _open(self, run_dir: Path, options: WandbOptions, task: str, run_id: str) -> Any:
        settings = self._library.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            init_timeout=30.0,
            finish_timeout=_FINISH_TIMEOUT_S,
        )
        try:
            return self._library.init(
                project=options.project,
                group=options.group,
                name=f"{options.group}/{task}",
                id=run_id,
                resume="allow",
                reinit="create_new",
                mode=self.mode,
                dir=str(run_dir),
                config=dict(options.config),
                settings=settings,
            )
        except self._library.Error as error:
            self.close()
            raise WandbError(
                f"W&B run {run_id!r} of task {task!r} cannot be opened in mode {self.mode}: "
                f"{error}. Set WANDB_MODE=offline, or telemetry.wandb: false"
            ) from error


# A stop has ten seconds for everything; what is not uploaded by then stays for `wandb sync`.
_FINISH_TIMEOUT_S = 3.0


_WALL_TAG = metric_named("wall_s").tag


def wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Return how W&B would run: as WANDB_MODE says, else online where a login is found.

    With a login, W&B may ask its server whose it is; that takes seconds where it cannot be reached.

    Raises:
      ModuleNotFoundError: wandb is not installed; the message is the line that installs it.
      ValueError: WANDB_MODE holds something else.
    """
    asked = os.environ.get("WANDB_MODE", "")
    match asked:
        case "online" | "offline" | "disabled":
            return asked
        case "":
            logged_in = _extra("wandb", "wandb").login(prompt=False, verify=False)
            return "online" if logged_in else "offline"
    raise ValueError(f"WANDB_MODE is {asked!r}: it must be online, offline or disabled")


def _step(row: Row) -> int:
    return int(row.wall_s) if row.task is None else int(row.values["env_frames"] or 0)


def _tagged(row: Row) -> dict[str, float]:
    return {metric_named(name).tag: value for name, value in row.known_values.items()}


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'rl-cluster[{extra}]', or set "
            f"telemetry.{extra}: false"
        ) from error
