"""A run's state as a table of HTML, from summary.json.

Invariant: what others wrote is escaped, and a run that died without a word is not shown as live.
"""

from __future__ import annotations

import time
from html import escape
from pathlib import Path

from rl_cluster.run_directory import is_in_use
from rl_cluster.telemetry.formatting import duration
from rl_cluster.telemetry.report import summary_table
from rl_cluster.telemetry.summary import Summary, is_stale, read_summary

_STYLE = """<style>
.rl-cluster table { font-size: 13px; }
.rl-cluster small { display: block; opacity: .65; }
.rl-cluster td, .rl-cluster th { text-align: right; padding: 3px 9px; vertical-align: top; }
.rl-cluster td:first-child, .rl-cluster th:first-child { text-align: left; }
.rl-cluster .failure { color: #b3400a; }
</style>"""
_SILENT_PERIODS = 5.0


def status_html(run_dir: Path) -> str:
    """The state of a run and its tasks, as its summary.json says it."""
    try:
        summary = read_summary(run_dir)
    except FileNotFoundError:
        return f"<p>{escape(str(run_dir))} has written no summary yet: it is starting.</p>"
    return (
        f'<div class="rl-cluster">{_STYLE}{_headline(summary, time.time())}'
        f"{summary_table(summary)}</div>"
    )


def next_look_s(run_dir: Path, period_s: float) -> float | None:
    """Seconds until a run is worth another look; None: it is over, and stays as it is.

    One that is silent may come back (a full disk, a frozen supervisor, a reboot), and is looked at
    less often; one that has ended and is held by a process is about to go on.

    Args:
      period_s: seconds between two looks at a live run.
    """
    try:
        summary = read_summary(run_dir)
    except FileNotFoundError:
        return period_s
    if summary["state"] != "running":
        return period_s if is_in_use(run_dir) else None
    return _SILENT_PERIODS * period_s if is_stale(summary, time.time()) else period_s


def _headline(summary: Summary, now_s: float) -> str:
    tier = summary["tier"]
    state = "no sign of life" if is_stale(summary, now_s) else summary["state"]
    parts = (
        f"<b>{escape(summary['run'])}</b> {state}",
        f"at work {duration(summary['wall_s'])}",
        f"tier {escape(tier['effective'])} (asked for {escape(tier['requested'])})",
        f"incidents {summary['incidents']}",
    )
    return f"<p>{' · '.join(parts)}</p>"
