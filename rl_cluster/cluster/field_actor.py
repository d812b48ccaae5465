"""Shell of a simulated field: the server of a task's own, and its rovers.

Invariant: the address of the server is in the run's control files before anybody is told to go
there, and stays the same while the run lasts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.cluster import names
from rl_cluster.cluster.messages import notice
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.control import Control
from rl_cluster.fleet_settings import address_file
from rl_cluster.streams.field import Field
from rl_cluster.supervision.health import Health

_LOOK_S = 0.5


@dataclass(frozen=True)
class FieldStatus:
    """What a field reports."""

    url: str
    rovers: int
    """Simulated ones that live."""
    notices: tuple[dict[str, str], ...] = ()


class FieldActor:
    """Field of one task."""

    def __init__(self, task: str, config: TaskConfig, run_dir: str, seed: int, epoch: int) -> None:
        self._vitals = Vitals(epoch, "starting")
        self._task, self._stream, self._seed = task, config.stream, seed
        self._run_dir = Path(run_dir)
        self._url, self._driving = "", 0
        self._notices: list[dict[str, str]] = []
        self._vitals.keep(self._run, "field")

    @once_made
    def __repr__(self) -> str:
        """Name, state and how many rovers drive."""
        return self._vitals.line(names.field_name(self._task), f"{self._driving} rovers")

    def health(self) -> Health:
        """Say how the work goes on."""
        return self._vitals.report()

    def status(self) -> FieldStatus:
        """Where the server is, and how many rovers drive."""
        notices, self._notices = self._notices, []
        return FieldStatus(self._url, self._driving, tuple(notices))

    def change(self, config: TaskConfig) -> None:
        """Nothing of a field changes live."""

    def _run(self) -> None:
        stream, control = self._stream, Control(self._run_dir)
        field = Field(
            self._run_dir / self._task / "nats",
            stream.port,
            stream.simulator.partition(":")[0],
            stream.simulated_rovers,
            stream.simulated_hz,
            self._seed,
            self._run_dir / self._task / "rovers.log",
            time.monotonic,
        )
        self._url = field.url
        control.write(address_file(self._task), {"url": field.url})
        self._vitals.enter("working")
        while True:
            self._vitals.progress()
            for said in field.look():
                self._notices.append(notice(said.kind, said.cause, said.action))
            self._driving = field.driving
            time.sleep(_LOOK_S)
