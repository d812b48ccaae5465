"""How much of the machine a run takes now, and which of its tasks: the pure rules, fed.

Holds the state of `supervision.tiers` and `supervision.slices` between two ticks, reads the sensors
and writes the boot journal. Invariant: all state is in `record`, so that a later supervisor goes on
where this one was; a sensor or a disk that fails stops nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl_cluster.boot_journal import BootJournal, present_boot_id
from rl_cluster.config import LoadConfig
from rl_cluster.sensors import Sensors
from rl_cluster.supervision import tiers
from rl_cluster.supervision.boots import cap_after
from rl_cluster.supervision.load import Load
from rl_cluster.supervision.pressure import Pressure, judge
from rl_cluster.supervision.slices import TaskPlace, rotate
from rl_cluster.supervision.tiers import CUSTOM, LoadRule, LoadState

_log = logging.getLogger(__name__)


class LoadControl:
    """The load of one run.

    Args:
      run_dir: the run's directory.
      config: tiers, thresholds and times.
      custom: what the tasks configure, all at once.
      most_games: tasks that fit the machine's memory at once.
      ours: whether a process, by its id, is this run's.
      requested: the tier that people asked for.
      record: what an earlier supervisor left in `record`; None: this is the first of its session.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LoadConfig,
        custom: Load,
        most_games: int,
        ours: Callable[[int], bool],
        requested: str,
        record: Mapping[str, Any] | None,
    ) -> None:
        self._config, self._custom, self._most_games = config, custom, most_games
        self._sensors = Sensors(run_dir, ours)
        boot_id = present_boot_id()
        self._boots = BootJournal(run_dir, boot_id)
        self.damage = self._boots.damage
        self._rotated_s: float | None = None
        self.pressure: Pressure | None = None
        self.memory_is_short = False
        """Whether the last look found memory itself below its threshold."""
        rule = self._rule(1)
        earlier = self._boots.earlier
        self._places: dict[str, TaskPlace] = {}
        if record is None:
            self.state = tiers.start(requested, rule)
        else:
            self.state = LoadState.from_record(record["state"])
            self._places = {p["name"]: TaskPlace.from_record(p) for p in record["places"]}
        if record is None or (earlier and earlier[-1].boot_id != boot_id):
            cap = cap_after(earlier, boot_id, time.time(), config.boot_cap_s)
            self.state = tiers.with_cap(self.state, cap)

    @property
    def record(self) -> dict[str, Any]:
        """What a later supervisor goes on from."""
        places = [place.to_record() for place in self._places.values()]
        return {"state": self.state.to_record(), "places": places}

    def request(self, tier: str) -> None:
        """Note a person's wish for the next tick.

        Raises:
          ValueError: there is no such tier.
        """
        self.state = tiers.request(self.state, tier, self._rule(1))

    def tick(
        self,
        now_s: float,
        able: Mapping[str, int],
        at_work: Set[str],
        custom: Load,
        store_share: float | None,
    ) -> str | None:
        """Look at the machine; return what changed, and why, where something did.

        Args:
          now_s: the supervisor's watch.
          able: tasks that could train, with their priorities.
          at_work: those whose workers are made.
          custom: what the tasks configure, all at once.
          store_share: share of the object store in use.
        """
        reading = self._sensors.read(store_share)
        self.pressure = judge(reading, self._config.pressure)
        available = reading.memory_available_share
        self.memory_is_short = (
            available is not None and available <= self._config.pressure.memory_available_low
        )
        self._custom = custom
        self.state, reason = tiers.next_load(
            self.state, self.pressure, now_s, self._rule(len(able))
        )
        self._rotate(now_s, able, at_work)
        try:
            self._boots.note(self.state.load, time.time())
        except OSError as error:
            _log.error("boot journal not written: %s", error)
        return reason

    @property
    def wants_more_games(self) -> bool:
        """Whether the tier has places for which this cluster was not made large enough."""
        whole = LoadRule.of(self._config, self._custom, 1).goal(self.state.requested)
        return whole.games > self._most_games

    @property
    def active(self) -> frozenset[str]:
        """Tasks that should be at work."""
        return frozenset(name for name, place in self._places.items() if place.active)

    @property
    def effective(self) -> str:
        """The tier by its name while all of it runs; else, or where it has none, what runs."""
        state, rule = self.state, self._rule(1)
        whole = state.load == rule.goal(state.requested) and not state.shed
        if state.requested == CUSTOM:
            return CUSTOM if whole else str(state.load)
        names = [name for name, load in rule.tiers.items() if load == state.load]
        return names[0] if names and not state.shed else str(state.load)

    def end(self) -> None:
        """The session ends in order."""
        try:
            self._boots.end(time.time())
        except OSError as error:
            _log.error("boot journal not written: %s", error)

    def _rotate(self, now_s: float, able: Mapping[str, int], at_work: Set[str]) -> None:
        passed_s = 0.0 if self._rotated_s is None else max(0.0, now_s - self._rotated_s)
        self._rotated_s = now_s
        places = [
            replace(
                self._places.get(name, TaskPlace(name)),
                priority=priority,
                able=True,
                at_work=name in at_work,
            )
            for name, priority in able.items()
        ]
        away = [replace(p, able=False) for name, p in self._places.items() if name not in able]
        rotated = rotate([*places, *away], self.state.load.games, passed_s, self._config.slice_s)
        self._places = {place.name: place for place in rotated}

    def _rule(self, tasks: int) -> LoadRule:
        rule = LoadRule.of(self._config, self._custom, max(1, tasks))
        bound = {
            name: replace(load, games=min(load.games, self._most_games))
            for name, load in rule.tiers.items()
        }
        return replace(rule, tiers=bound)
