"""The commands that are about more than one run, or about one that is not there yet.

Sweep, compare, forecast; as thin as the others (`cli.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rl_cluster.exit_codes import DONE, FAILED, INTERRUPTED, WRONG_USAGE, complain
from rl_cluster.signals import StopFlag

if TYPE_CHECKING:
    from rl_cluster.cluster.sweep import Outcome, Sweep


def sweep(arguments: argparse.Namespace, stop: StopFlag) -> int:
    """Train a configuration with several seeds, one after the other."""
    from rl_cluster.cluster.sweep import Sweep
    from rl_cluster.config import ConfigError
    from rl_cluster.run_directory import RunDirectoryError
    from rl_cluster.sweep_plan import plan_sweep

    directory = arguments.sweep or Path("runs") / f"{arguments.config.stem}-sweep"
    try:
        plan = plan_sweep(directory, arguments.config, arguments.overrides, arguments.seeds)
        with Sweep(plan, stop) as taken:
            return _train_seeds(taken)
    except (ConfigError, RunDirectoryError) as error:
        return complain(str(error), WRONG_USAGE)
    except OSError as error:
        return complain(f"cannot write to {directory}: {error}", FAILED)


def _train_seeds(taken: Sweep) -> int:
    from rl_cluster.cli_display import showing
    from rl_cluster.telemetry.display import Display

    failed = 0
    for seed in taken.plan.seeds:
        print(f"seed {seed}: {taken.plan.run_dir(seed)}", flush=True)
        with Display() as display:
            outcome = taken.train(seed, showing(display))
            if outcome.summary is not None:
                display.finish(outcome.summary)
        print(f"seed {seed}: {_words(outcome)}", flush=True)
        failed += outcome.state == "failed"
        if outcome.state == "interrupted":
            print("everything is saved; the same command goes on with it")
            return INTERRUPTED
    print(f"to compare: rl-cluster compare {taken.plan.directory}")
    if failed:
        return complain(f"{failed} of {len(taken.plan.seeds)} runs failed", FAILED)
    return DONE


def _words(outcome: Outcome) -> str:
    from rl_cluster.cli_display import report_note

    if outcome.state == "failed":
        return (
            f"failed: {outcome.reason} (to try it once more: rl-cluster train CONFIG "
            f"--run {outcome.run_dir} --resume)"
        )
    if outcome.summary is None:
        return f"was {outcome.state} before"
    note = report_note(outcome.run_dir) if outcome.state == "completed" else ""
    return f"{outcome.state} {note}".strip()


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
