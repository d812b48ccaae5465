"""What TensorBoard shows of a run: charts, incidents as text, and the best game as a film.

Invariant: one event file a directory grows at a time, as TensorBoard's reader wants it: a directory
per task against env_frames, and one of the run against seconds.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.metrics import metric_named
from rl_cluster.telemetry.rows import Row, extra

_ROOM_BYTES = 1 << 20
_MOST_WAITING = 1_000


class TensorBoardSink:
    """RUN/tensorboard/TASK, and RUN/tensorboard for the run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._directory = run_dir, run_dir / "tensorboard"
        self._files = extra("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._events = extra("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._tensors = extra("tensorboard.util.tensor_util", "tensorboard")
        self._scalar, self._text, self._image = (
            extra(f"tensorboard.plugins.{kind}.metadata", "tensorboard").create_summary_metadata
            for kind in ("scalar", "text", "image")
        )
        self._writers: dict[str | None, Any] = {}
        self._described: set[tuple[str | None, str]] = set()
        self._waiting: deque[Incident] = deque(maxlen=_MOST_WAITING)
        self._shown: dict[str, int] = {}
        """Task to the time (ns) of the film that was shown last."""

    def write(self, row: Row) -> None:
        """Add one point to the chart of every known value, and what came since the last row.

        Raises:
          OSError: the disk is full or gone; the charts go on in another file once there is room.
        """
        try:
            for name, value in row.known_values.items():
                metadata = self._scalar(None, self._description(row.task, name))
                self._add(row, metric_named(name).tag, np.float32(value), metadata)
            self._add_incidents(row)
            if row.task is not None:
                self._add_best_game(row, row.task)
        except OSError:
            self._give_up(row.task)
            raise

    def incident(self, incident: Incident) -> None:
        """Show it at the step of the next row of its task, or of the run."""
        self._waiting.append(incident)

    def flush(self) -> None:
        """Write what TensorBoard's own thread still holds; raises as `write` does."""
        for task, writer in list(self._writers.items()):
            try:
                writer.flush()
            except OSError:
                self._give_up(task)
                raise

    def close(self) -> None:
        """Close every event file."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _add(self, row: Row, tag: str, data: object, metadata: object) -> None:
        event = self._events.Event(wall_time=row.time_s, step=row.step)
        tensor = self._tensors.make_tensor_proto(data)
        event.summary.value.add(tag=tag, tensor=tensor, metadata=metadata)
        self._writer(row.task).add_event(event)

    def _add_incidents(self, row: Row) -> None:
        """One text for all: a tag has one value a step."""
        mine = [incident for incident in self._waiting if incident.task == row.task]
        if not mine:
            return
        text = "\n\n".join(f"**{i.kind}** {i.worker or ''} {i.cause}: {i.action}" for i in mine)
        self._add(row, "incidents", text, self._text(None, "What happened, and what was done."))
        others = [incident for incident in self._waiting if incident.task != row.task]
        self._waiting = deque(others, maxlen=_MOST_WAITING)

    def _add_best_game(self, row: Row, task: str) -> None:
        """The film that the evaluator made, as it is: browsers play it where images are shown."""
        path = self._run_dir / task / "videos" / "best.gif"
        try:
            made_ns, film = path.stat().st_mtime_ns, path.read_bytes()
        except FileNotFoundError:
            return
        if made_ns != self._shown.get(task):
            with Image.open(io.BytesIO(film)) as image:
                width, height = image.size
            data = [str(width).encode(), str(height).encode(), film]
            self._add(row, "videos/best", data, self._image(None, "The best game so far."))
            self._shown[task] = made_ns

    def _give_up(self, task: str | None) -> None:
        """Leave a file whose end is torn: its writer repeats the first error for ever."""
        with suppress(OSError):
            self._writers.pop(task).close()
        self._described = {described for described in self._described if described[0] != task}

    def _writer(self, task: str | None) -> Any:
        if task not in self._writers:
            self._check_room()
            directory = self._directory / task if task else self._directory
            self._writers[task] = self._files.EventFileWriter(str(directory))
        return self._writers[task]

    def _check_room(self) -> None:
        """Begin no file where it would be torn at once: a full disk is tried again every row."""
        self._directory.mkdir(exist_ok=True)
        if shutil.disk_usage(self._directory).free < _ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))

    def _description(self, task: str | None, name: str) -> str | None:
        # TensorBoard reads the description of a tag's first event only, and repeats it in each.
        if (task, name) in self._described:
            return None
        self._described.add((task, name))
        return metric_named(name).description
