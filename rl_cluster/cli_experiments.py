"""The commands that are about more than one run, or about one that is not there yet.

Sweep, compare, forecast; as thin as the others (`cli.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rl_cluster.exit_codes import DONE, FAILED, INTERRUPTED, WRONG_USAGE, complain
from rl_cluster.signals import StopFlag

if TYPE_CHECKING:
    from rl_cluster.cluster.sweep import Outcome
    from rl_cluster.cluster.trial import Measured
    from rl_cluster.config import RunConfig
    from rl_cluster.forecast import Forecast
    from rl_cluster.sweep_plan import SweepPlan


def sweep(arguments: argparse.Namespace, stop: StopFlag) -> int:
    """Train a configuration with several seeds, one after the other."""
    from rl_cluster.config import ConfigError
    from rl_cluster.run_directory import RunDirectoryError
    from rl_cluster.run_path import sweep_path
    from rl_cluster.sweep_plan import plan_sweep

    try:
        directory = sweep_path(arguments.sweep, arguments.config)
        plan = plan_sweep(directory, arguments.config, arguments.overrides, arguments.seeds)
        return _train_seeds(plan, stop)
    except (ConfigError, RunDirectoryError) as error:
        return complain(str(error), WRONG_USAGE)
    except OSError as error:
        return complain(f"cannot write the sweep: {error}", FAILED)


def _train_seeds(plan: SweepPlan, stop: StopFlag) -> int:
    from rl_cluster.cli_display import announce, say, showing
    from rl_cluster.cluster.sweep import Sweep
    from rl_cluster.telemetry.display import Display

    failed = 0
    with Sweep(plan, stop, announce) as sweep:
        for seed in plan.seeds:
            say(f"seed {seed}")
            with Display() as display:
                outcome = sweep.train(seed, showing(display))
                if outcome.summary is not None:
                    with contextlib.suppress(OSError, SystemExit):
                        display.finish(outcome.summary)
            say(f"seed {seed}: {_words(outcome)}")
            failed += outcome.state == "failed"
            if outcome.state == "interrupted":
                say("everything is saved; the same command goes on with it")
                return INTERRUPTED
    say(f"to compare: rl-cluster compare {plan.directory}")
    if failed:
        return complain(f"{failed} of {len(plan.seeds)} runs failed", FAILED)
    return DONE


def _words(outcome: Outcome) -> str:
    from rl_cluster.cli_display import report_note

    if outcome.state == "failed":
        return f"failed: {outcome.reason} (to try it once more: {_once_more(outcome.run_dir)})"
    if outcome.state == "interrupted":
        return "interrupted"
    if outcome.summary is None:
        return "was completed before"
    return f"completed; {report_note(outcome.run_dir)}"


def _once_more(run_dir: Path) -> str:
    configuration = run_dir / "config.yaml"  # with the seed, and all that --set said
    if configuration.exists():
        return f"rl-cluster train {configuration} --run {run_dir} --resume"
    return "the same command"


def compare(arguments: argparse.Namespace) -> int:
    """Put groups of runs beside each other."""
    from rich.console import Console

    from rl_cluster.comparison import compare as compare_runs
    from rl_cluster.comparison_runs import ComparisonError
    from rl_cluster.telemetry.comparison_page import terminal_tables, write_comparison

    try:
        comparison = compare_runs(arguments.runs)
        page = write_comparison(comparison, arguments.out) if arguments.out else None
    except (ComparisonError, OSError) as error:
        return complain(str(error), FAILED)
    if arguments.json:
        print(json.dumps(comparison.to_record()))
        return DONE
    console = Console(width=None if Console().is_terminal else 100)
    for table in terminal_tables(comparison):
        console.print(table)
    for note in [*comparison.notes, *([f"page: {page}"] if page else [])]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return DONE


def forecast(arguments: argparse.Namespace, stop: StopFlag) -> int:
    """Measure for a while, and say what training to the end takes."""
    from rl_cluster.config import ConfigError
    from rl_cluster.config_file import load
    from rl_cluster.forecast import ForecastError, as_trial
    from rl_cluster.supervision.admission import AdmissionError

    measured: dict[str, Measured] = {}
    try:
        config = load(arguments.config, arguments.overrides)
        tiers = arguments.tiers or [config.load.tier]
        trials = {tier: as_trial(config, tier, arguments.seconds) for tier in tiers}
        for tier, trial in trials.items():
            if (found := _measure(trial, arguments, stop)) is None:
                return INTERRUPTED
            measured[tier] = found
    except ConfigError as error:
        return complain(str(error), WRONG_USAGE)
    except (AdmissionError, ForecastError, OSError) as error:
        return complain(str(error), FAILED)
    finally:  # one tier took minutes, and is not lost with the next
        if measured:
            _show_forecast(_forecast(config, measured, arguments), arguments.json)
    return DONE


def _measure(trial: RunConfig, arguments: argparse.Namespace, stop: StopFlag) -> Measured | None:
    """How fast one tier is; None where a person did not want to wait for it."""
    from rl_cluster.cli_display import announce, showing
    from rl_cluster.cluster.trial import measure
    from rl_cluster.telemetry.display import Display

    with Display() as display:
        if arguments.json:
            return measure(trial, arguments.seconds, stop, lambda *_: None, lambda _: None)
        return measure(trial, arguments.seconds, stop, announce, showing(display))


def _forecast(
    config: RunConfig, measured: Mapping[str, Measured], arguments: argparse.Namespace
) -> Forecast:
    from rl_cluster.forecast import Forecast, assumptions, foretell
    from rl_cluster.machine import detect

    frames, hourly = arguments.env_frames, arguments.hourly
    tiers = [foretell(config, t, found.rates, frames, hourly) for t, found in measured.items()]
    changes = [f"{t}: {why}" for t, found in measured.items() for why in found.load_changes]
    notes = assumptions(config, tiers, frames, hourly, changes)
    return Forecast(detect().words, arguments.seconds, hourly, tiers, notes)


def _show_forecast(found: Forecast, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_record()))
    else:
        _print_forecast(found)


def _print_forecast(found: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    from rl_cluster.telemetry.formatting import UNKNOWN, count, number

    def money(cost: float | None) -> str:
        return UNKNOWN if cost is None else f"{cost:,.2f}"

    console = Console(width=None if Console().is_terminal else 100)
    for tier in found.tiers:
        title = f"tier {tier.tier}, {tier.games_at_once} at once, on {found.machine}"
        table = Table("game", "env frames/s", "env steps", "hours", "cost", title=title)
        for game in tier.games:
            rate = count(game.env_frames_per_s) + ("" if game.measured else " (not measured)")
            steps = count(game.env_steps)
            table.add_row(game.task, rate, steps, number(game.hours), money(game.cost))
        table.add_section()
        table.add_row("all", "", "", number(tier.hours), money(tier.cost))
        console.print(table)
    for assumption in found.assumptions:
        console.print(f"assumed: {assumption}", markup=False, highlight=False, soft_wrap=True)
