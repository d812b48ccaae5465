"""What every worker says of itself when the supervisor asks: does it live, does it get on.

Invariant: the answer is made by another thread than the work, from numbers that the work leaves
behind, so it tells a worker that computes from one that hangs; only one that holds the interpreter,
or was frozen, cannot answer at all.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

import psutil

from rl_cluster.cluster.actors import cause_of
from rl_cluster.cluster.placement import node_id
from rl_cluster.control import ProcessId
from rl_cluster.supervision.health import Health, Phase

_log = logging.getLogger(__name__)


_Actor = TypeVar("_Actor")


def once_made(line: Callable[[_Actor], str]) -> Callable[[_Actor], str]:
    """For a `__repr__`: Ray asks for that of an actor whose constructor failed, too.

    An error there would take the place of the constructor's own, which says what is wrong.
    """

    def said(actor: _Actor) -> str:
        try:
            return line(actor)
        except AttributeError:
            return f"<{type(actor).__name__}: not made>"

    said.__doc__ = line.__doc__
    return said


class Vitals:
    """The record that a worker's threads write and its `health` reads."""

    def __init__(self, epoch: int, phase: Phase) -> None:
        self.epoch = epoch
        self._phase: Phase = phase
        self._progress, self._work = 0, 0
        self._failure: str | None = None
        self.in_vain = False
        """What the work has done so far came to nothing."""
        self._begun_s = time.monotonic()
        self._counted: tuple[float, float] | None = None
        self._process, self._process_id = psutil.Process(), ProcessId.of(os.getpid())

    def progress(self) -> None:
        """Note that the work got on by a step."""
        self._progress += 1
        self._work += 1

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Be in another phase for a while."""
        before, self._phase = self._phase, phase
        self._progress += 1
        try:
            yield
        finally:
            self._phase = before
            self._progress += 1

    def enter(self, phase: Phase) -> None:
        """Be in another phase from now on."""
        self._phase = phase
        self._progress += 1

    def keep(self, loop: Callable[[], None], name: str) -> None:
        """Run a worker's loop in a thread of its own; an error that ends it is its failure."""

        def run() -> None:
            try:
                loop()
            except Exception as error:  # noqa: BLE001 - thread boundary: the supervisor hears of it
                _log.exception("%s failed", name)
                self._failure = cause_of(error)
            else:
                self.enter("ended")

        threading.Thread(target=run, name=name, daemon=True).start()

    def line(self, name: str, *figures: str) -> str:
        """What an actor's `repr` says; its age tells when, since Ray keeps the first for ever."""
        age_s = time.monotonic() - self._begun_s
        said = ", ".join([self._phase, *figures])
        return f"<{name}: {said}; life {self.epoch}, {age_s:.0f} s old>"

    def per_s(self, count: float) -> float:
        """Growth of a worker's own counter since the last question; 0 at the first."""
        now_s = time.monotonic()
        before_s, before = self._counted or (now_s, count)
        self._counted = now_s, count
        return (count - before) / (now_s - before_s) if now_s > before_s else 0.0

    def report(self) -> Health:
        """The answer to the supervisor."""
        return Health(
            epoch=self.epoch,
            phase=self._phase,
            progress=self._progress,
            memory_bytes=int(self._process.memory_info().rss),
            **asdict(self._process_id),
            node_id=node_id(),
            failure=self._failure,
            in_vain=self.in_vain,
            work=self._work,
        )
