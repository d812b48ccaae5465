"""What training will take: hours and money, from what a short run on this machine was measured at.

Invariant: every rate was measured or says that it was not, and what a figure takes for granted is
written beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.telemetry import writers
from rl_cluster.telemetry.jsonl import read_lines

_HOUR_S = 3600.0
_PATIENCE_S = 600.0
"""Until a task begins to learn."""
PAPERS_ENV_FRAMES = 200_000_000
"""Of each game: Mnih et al. 2015, and most that came after them."""


class ForecastError(RuntimeError):
    """Nothing can be foretold; the message says why and what to do."""


@dataclass(frozen=True)
class Rate:
    """How fast one task trained."""

    env_steps_per_s: float
    frames_per_step: float


@dataclass(frozen=True)
class GameForecast:
    """What one task takes."""

    task: str
    env_steps_per_s: float
    """While it trains, beside the others that train at once."""
    env_frames_per_s: float
    measured: bool
    """False: it had no turn, and is given the mean rate of those that had."""
    env_steps: int
    """To train for."""
    hours: float
    """At work."""
    cost: float | None
    """Of its share of the machine; None: no price is known."""


@dataclass(frozen=True)
class TierForecast:
    """What all tasks take under one tier."""

    tier: str
    games_at_once: int
    games: Sequence[GameForecast]
    hours: float
    """Until the last task is complete."""
    cost: float | None


@dataclass(frozen=True)
class Forecast:
    """What a configuration takes on this machine."""

    machine: str
    seconds: float
    """Of each measurement, from when all tasks at work learned."""
    hourly: float | None
    tiers: Sequence[TierForecast]
    assumptions: Sequence[str]

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def as_trial(config: RunConfig, tier: str, seconds: float) -> RunConfig:
    """A configuration to be measured: the same work, that nobody outside hears of.

    Args:
      seconds: to measure for, once it learns.

    Raises:
      ConfigError: there is no such tier, or real rovers would hear of it.
    """
    for name, task in config.tasks.items():
        if task.is_fleet and task.stream.url is not None:
            raise ConfigError(
                f"a trial of {name} would take what its rovers at {task.stream.url} send, and "
                "drive them with what it learned in a minute: measure with simulated ones, "
                f"--set tasks.{name}.stream.url=null tasks.{name}.stream.simulated_rovers=3"
            )
    tasks = {
        name: dataclasses.replace(
            task, checkpoint=dataclasses.replace(task.checkpoint, upload=None)
        )
        for name, task in config.tasks.items()
    }
    trial = dataclasses.replace(
        config,
        tasks=tasks,
        max_seconds=seconds + _PATIENCE_S,  # whoever measures it ends it earlier
        max_env_steps=None,
        # Those that begin train on until the end: a change of turns is no part of their rate.
        load=dataclasses.replace(
            config.load, tier=tier, slice_s=max(config.load.slice_s, seconds + _PATIENCE_S)
        ),
        telemetry=dataclasses.replace(config.telemetry, wandb=False, period_s=1.0),
    )
    trial.check_valid()
    return trial


def read_rates(run_dir: Path, since_s: float | None, failures: str = "") -> dict[str, Rate]:
    """Return the rates of a run's tasks since all that were at work learned.

    Args:
      since_s: when that was, unix s; None: never.
      failures: why tasks of it were parked.

    Raises:
      ForecastError: one was parked, or did not begin to learn.
    """
    if failures:
        raise ForecastError(
            f"not every task could be measured ({failures}): mend what is said there, and measure "
            "again"
        )
    learning: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_lines(run_dir / writers.FILE_NAME) if since_s is not None else ():
        if row["task"] is not None and row["learner_updates"] and row["time"] >= since_s:
            learning.setdefault(row["task"], []).append(row)
    rates = {}
    times = [row["time"] for rows in learning.values() for row in rows]
    middle_s = (min(times) + max(times)) / 2 if times else 0.0
    for task, rows in learning.items():
        steps = rows[-1]["env_steps"] - rows[0]["env_steps"]
        if steps == 0 and rows[0]["time"] > middle_s:
            continue  # it has only just begun: as if it had no turn
        if steps == 0:
            raise ForecastError(
                f"{task} learned, and took no env steps while it was measured: measure for longer "
                "with --seconds; of rovers, let some send"
            )
        frames_per_step = rows[-1]["env_frames"] / rows[-1]["env_steps"]
        rates[task] = Rate(steps / (rows[-1]["time"] - rows[0]["time"]), frames_per_step)
    if not rates:
        raise ForecastError(
            f"not every task began to learn within {_PATIENCE_S:.0f} s, or none for long enough: "
            "lower replay.min_transitions, or measure for longer with --seconds"
        )
    return rates


def foretell(
    config: RunConfig,
    tier: str,
    rates: Mapping[str, Rate],
    env_frames: float | None,
    hourly: float | None,
) -> TierForecast:
    """Return what a configuration's tasks take under a tier.

    Args:
      rates: of those that trained; as many train at once.
      env_frames: of each task; None: as many as `max_env_steps` is, or papers have.
      hourly: price of the machine.
    """
    at_once = len(rates)
    mean = Rate(
        sum(rate.env_steps_per_s for rate in rates.values()) / at_once,
        sum(rate.frames_per_step for rate in rates.values()) / at_once,
    )
    games = []
    for task in config.tasks:
        rate = rates.get(task, mean)
        steps = _wanted(config, env_frames, rate)
        hours = steps / rate.env_steps_per_s / _HOUR_S
        frames_per_s = rate.env_steps_per_s * rate.frames_per_step
        cost = None if hourly is None else hours * hourly / at_once
        games.append(
            GameForecast(
                task, rate.env_steps_per_s, frames_per_s, task in rates, steps, hours, cost
            )
        )
    # Either the places are always filled, or the longest game is what one waits for.
    hours = max(sum(game.hours for game in games) / at_once, max(game.hours for game in games))
    return TierForecast(tier, at_once, games, hours, None if hourly is None else hours * hourly)


def _wanted(config: RunConfig, env_frames: float | None, rate: Rate) -> int:
    if env_frames is None and config.max_env_steps is not None:
        return config.max_env_steps
    return round((env_frames or PAPERS_ENV_FRAMES) / rate.frames_per_step)


def assumptions(
    config: RunConfig,
    tiers: Sequence[TierForecast],
    env_frames: float | None,
    hourly: float | None,
    changes: Sequence[str] = (),
) -> list[str]:
    """What the figures take for granted.

    Args:
      changes: why the load was changed while a tier was measured.
    """
    notes = []
    if config.max_env_steps is None and env_frames is None:
        notes.append(f"each game trains for {PAPERS_ENV_FRAMES:,} environment frames, as in papers "
                     "on Atari: --env-frames or max_env_steps name another end")  # fmt: skip
    notes += [
        "the rate since learning began, evaluation and checkpoints included, holds to the end",
        "nothing else wants the machine, and nothing interrupts the run",
        "tasks that train at once go on at the same rate when one of them is complete",
    ]
    if any(len(tier.games) > tier.games_at_once for tier in tiers):
        notes.append("turns follow each other without a pause; tasks without a turn so far train "
                     "at the mean rate of the others")  # fmt: skip
    if any(tier.tier == "auto" for tier in tiers):
        notes.append("auto stays at what it begins with")
    notes += [f"what was given up meanwhile stays given up: {change}" for change in changes]
    if hourly is not None:
        notes.append("a task costs its share of the machine: hours × price / tasks at once")
    return notes
