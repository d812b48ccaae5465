"""Where the figures of a run go while it is at work: metrics.jsonl and TensorBoard.

Invariant: one writer per run, and every row is checked against the table of metrics before any
place receives it. A resumed run appends to what is there. What may block or be far away follows
these files from a process of its own (`tracker.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.jsonl import JsonLines
from rl_cluster.telemetry.rows import Row, Sink
from rl_cluster.telemetry.tensorboard_sink import TensorBoardSink

FILE_NAME = "metrics.jsonl"


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

    def incident(self, incident: Incident) -> None:
        """Let every sink that shows incidents show one."""
        for sink in self._sinks:
            sink.incident(incident)

    def flush(self) -> None:
        """Make what was written visible to readers."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close every sink, also when one of them fails; harmless when repeated."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


def open_writer(run_dir: Path, *first: Sink, tensorboard: bool = False) -> MetricsWriter:
    """Open every place that a run writes to; metrics.jsonl always.

    Args:
      run_dir: the run's directory.
      first: further places, which get a row before a full disk can refuse it.
      tensorboard: whether to write for TensorBoard.

    Raises:
      ModuleNotFoundError: an extra is not installed; the message says what to do.
    """
    last: list[Sink] = [TensorBoardSink(run_dir)] if tensorboard else []
    return MetricsWriter([*first, JsonlSink(run_dir), *last])


class JsonlSink:
    """RUN/metrics.jsonl: one line a row, with the system when `write` returns."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / FILE_NAME)

    def write(self, row: Row) -> None:
        """Append the row."""
        self._lines.append(row.to_columns())

    def incident(self, incident: Incident) -> None:
        """Nothing: incidents have a file of their own."""

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
