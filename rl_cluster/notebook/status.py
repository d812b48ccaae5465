"""A run's state as a table of HTML, from summary.json.

Invariant: what others wrote is escaped, and a run that died without a word is not shown as live.
"""

from __future__ import annotations

import time
from html import escape
from pathlib import Path

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


def is_live(run_dir: Path) -> bool:
    """Whether a run is at work, or has yet to say that it is."""
    try:
        summary = read_summary(run_dir)
    except FileNotFoundError:
        return True
    return summary["state"] == "running" and not is_stale(summary, time.time())


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
