"""What commands that train show of a run: what was admitted, live figures, where the report is.

Invariant: nothing that happens to the terminal reaches the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from rl_cluster.preparation import PreparedRun
from rl_cluster.telemetry.display import Display
from rl_cluster.telemetry.report import write_report
from rl_cluster.telemetry.summary import Summary


def showing(display: Display) -> Callable[[Summary], None]:
    """The display's update, until its terminal is gone: the run goes on without it."""
    gone = False

    def show(summary: Summary) -> None:
        nonlocal gone
        if gone:
            return
        try:
            display.update(summary)
        except (OSError, SystemExit):  # SystemExit: rich's answer to a broken pipe
            gone = True

    return show


def report_note(run_dir: Path) -> str:
    """Write the report of a run that has ended; where it is, or why there is none."""
    try:
        return f"report: {write_report(run_dir)}"
    except (OSError, ValueError) as error:
        return f"no report: {error}"


def announce(prepared: PreparedRun, run_dir: Path) -> None:
    """Print what this machine made of a configuration."""
    say(f"run directory: {run_dir}")
    say(f"cluster: {prepared.effective.config.cluster.address}")
    admission = prepared.admission
    own = prepared.effective.config.cluster.address == "local"
    say(
        ("admitted: " if own else "wanted, as far as the cluster has it: ")
        + f"{admission.object_store_bytes / 1e9:.2f} GB of object store, "
        f"{admission.host_bytes / 1e9:.2f} GB in all"
    )
    for demand in prepared.demands:
        say(f"{demand.name}: replay of {demand.blocks:,} blocks × {demand.block_bytes:,} bytes")
    for row in prepared.effective.differences:
        say(f"{row.setting}: {row.requested!r} -> {row.effective!r} ({row.reason})")


def say(text: str) -> None:
    """Print a line, where there is still somebody to read it."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
