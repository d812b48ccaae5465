"""Sides that are whole training programs: started once, learning, and frozen while others work.

Invariant: a turn is counted between two lines that the program itself wrote while it learned, at
the samples per environment step that were asked for; between turns not one of its processes runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from sides import BenchmarkError, Tree, Watch, Window, side_mark

WARM_UP_UPDATES = 20
LEARNING_TIMEOUT_S = 600.0
SILENCE_S = 60.0
TOLERANCE = 0.05
LINES_APART = 8
"""A turn holds so many times the steps by which the counts of a line may be apart."""
_LOOK_S = 0.02
_TAIL_BYTES = 4_000


class Counts(NamedTuple):
    """What a program has done by a moment (Unix seconds)."""

    time: float
    env_steps: int
    updates: int


@dataclass(frozen=True)
class Program:
    """How a side is started, and what it must keep to."""

    name: str
    command: Sequence[str]
    directory: Path
    """Its own, existing: it works there, and its output goes into `output.log` beside what it
    makes."""
    counts: Path
    """File of JSON lines with `time`, `env_steps` and `learner_updates` that it appends to."""
    samples_per_insert: float
    batch: int
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables beside our own."""
    settle_s: float = 1.0
    """From thawing until a line counts."""
    rest_s: float = 0.0
    """From a turn's last line until freezing: a moment when nothing waits with a deadline."""
    granularity: int = 0
    """Environment steps by which a line's two counts may be apart."""


class TrainingSide:
    """A training program, frozen between its turns; `failed` once one of them could not be counted.

    Raises:
      BenchmarkError: it ended, or did not learn in time.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.failed = program, False
        self._seen = _Lines(program.counts)
        self._log = program.directory / "output.log"
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                program.command, cwd=program.directory, stdout=log, stderr=log,
                env={**os.environ, **program.env, **side_mark()}, start_new_session=True,
            )  # fmt: skip
        self.tree = Tree(self._process.pid)
        try:
            self._wait(lambda counts: counts.updates >= WARM_UP_UPDATES, LEARNING_TIMEOUT_S)
            self._freeze()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TrainingSide:
        """Return the side."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End its processes."""
        self.close()

    def turn(self, seconds: float) -> Window:
        """Learn for so long, alone; the window's amount is environment steps.

        Raises:
          BenchmarkError: it ended, fell silent, or learned more or less than was asked for.
        """
        self.tree.signal(signal.SIGCONT)
        try:
            first = self._first_after(time.time() + self.program.settle_s)
            watch = Watch(self.tree)
            least = first.env_steps + max(1, LINES_APART * self.program.granularity)
            last = self._first_after(first.time + seconds, least)
            window = watch.window(last.env_steps - first.env_steps, last.time - first.time)
            check_ratio(self.program, first, last)
        except BenchmarkError:
            self.failed = True
            raise
        finally:
            self._freeze()
        return window

    def close(self) -> None:
        """End its processes."""
        self.tree.end()
        self._process.wait()

    def _freeze(self) -> None:
        time.sleep(self.program.rest_s)
        self.tree.signal(signal.SIGSTOP)

    def _first_after(self, moment: float, env_steps: int = 0) -> Counts:
        """The first line from a moment on, with so many steps at least."""
        return self._wait(
            lambda counts: counts.time >= moment and counts.env_steps >= env_steps,
            moment - time.time() + SILENCE_S,
        )

    def _wait(self, wanted: Callable[[Counts], bool], timeout_s: float) -> Counts:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for counts in self._seen.new():
                if wanted(counts):
                    return counts
            if self._process.poll() is not None:
                raise BenchmarkError(self._said(f"ended with {self._process.returncode}"))
            time.sleep(_LOOK_S)
        raise BenchmarkError(self._said(f"did not do its part within {timeout_s:.0f} s"))

    def _said(self, what: str) -> str:
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-_TAIL_BYTES:].strip()
        last = tail.splitlines()[-1] if tail else "nothing"
        return f"{tail}\n{self.program.name} {what}; it said last: {last}"


class _Lines:
    """Counts of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[Counts]:
        """Those of the whole lines written since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text, _, _ = file.read().rpartition(b"\n")
        self._offset += len(text) + bool(text)
        rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        return [
            Counts(row["time"], row["env_steps"], row["learner_updates"])
            for row in rows
            if row.get("env_steps") is not None
        ]


def check_ratio(program: Program, first: Counts, last: Counts) -> None:
    """Refuse a turn in which not the wanted number of samples was learned from each step.

    Raises:
      BenchmarkError: it was more than 5 % off, beyond what the counts can be apart at both ends.
    """
    env_steps = last.env_steps - first.env_steps
    samples = (last.updates - first.updates) * program.batch
    wanted = program.samples_per_insert * env_steps
    apart = 2 * program.granularity * program.samples_per_insert
    if abs(samples - wanted) > TOLERANCE * wanted + apart or not env_steps:
        raise BenchmarkError(
            f"{program.name} learned {samples} samples in {env_steps} environment steps; "
            f"{program.samples_per_insert:g} a step were asked for"
        )
