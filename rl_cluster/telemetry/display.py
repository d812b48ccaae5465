"""A run on the terminal: live figures while it trains, and a table at its end.

Invariant: everything shown comes from one summary object (`summary.Summary`), so that the same
picture can be drawn by the process that trains and by one that reads RUN/summary.json. Where the
output is no terminal, one plain line per task is printed every so often instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl_cluster.telemetry.display_fleet import fleet_parts, fleets
from rl_cluster.telemetry.formatting import (
    UNKNOWN,
    count,
    data_size,
    duration,
    number,
    percent,
    score,
)
from rl_cluster.telemetry.summary import Evaluation, Summary, TaskSummary, is_stale

_STATE_STYLES = {
    "queued": "cyan",
    "starting": "cyan",
    "warming_up": "cyan",
    "running": "green",
    "paused": "yellow",
    "waiting": "yellow",
    "completed": "bold green",
    "interrupted": "yellow",
    "failed": "bold red",
}
_FILL_CELLS = 8
# Without a terminal rich assumes 80 columns; a log has no such limit.
_PLAIN_WIDTH = 100


class Display:
    """Shows summaries as they come; a context manager, because a terminal must be left clean.

    Args:
      console: where to; a terminal gets the live picture, anything else plain lines.
      line_period_s: seconds between two plain lines of a task.
    """

    def __init__(self, console: Console | None = None, line_period_s: float = 10.0) -> None:
        self._console = console or Console()
        self._line_period_s = line_period_s
        self._next_line_s = 0.0
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        """Take the terminal, where there is one."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the terminal back, also after an error; the live picture is wiped."""
        self._live.stop()

    def update(self, summary: Summary) -> None:
        """Show a newer summary."""
        if self._console.is_terminal:
            self._live.update(picture(summary, time.time()), refresh=True)
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + self._line_period_s
            self._print_plain(plain_lines(summary))

    def finish(self, summary: Summary, notes: Sequence[str] = ()) -> None:
        """Leave the terminal and print the final table, then the notes, one a line."""
        self._live.stop()
        table_console = self._console
        if not table_console.is_terminal:
            table_console = Console(file=table_console.file, width=_PLAIN_WIDTH)
        table_console.print(final_table(summary))
        self._print_plain(notes)

    def _print_plain(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def picture(summary: Summary, now_s: float) -> RenderableType:
    """Return the live picture: a header, and three lines per game; fits 100 columns.

    Args:
      now_s: Unix seconds, to tell a run that died without a word.
    """
    table = _table(
        "game", "per second", "samples\n/insert", "policy\nlag  ", "replay", "loss",
        "training return", "evaluation",
    )  # fmt: skip
    for name, task in summary["tasks"].items():
        table.add_row(*_live_cells(name, task))
    extras = (*_networks(summary), *fleets(summary), *_failures(summary))
    return Group(_header(summary, now_s), table, *extras)


def final_table(summary: Summary) -> RenderableType:
    """Return what remains on the screen when a run has ended: totals, returns, the best."""
    table = _table(
        "game", "learned", "samples\n/insert", "training return", "evaluation", "best", "health"
    )
    for name, task in summary["tasks"].items():
        table.add_row(*_final_cells(name, task))
    return Group(_header(summary, summary["updated_at"]), table, *_failures(summary))


def plain_lines(summary: Summary) -> list[str]:
    """Return one line per task, for logs."""
    return [_plain_line(summary, name, task) for name, task in summary["tasks"].items()]


def _plain_line(summary: Summary, name: str, task: TaskSummary) -> str:
    ratio, lag, evaluation = task["samples_per_insert"], task["policy_lag"], task["evaluation"]
    parts = [
        f"[{duration(summary['wall_s'])}] {name} {_words(task['state'])}",
        f"{count(task['env_frames'])} frames ({count(task['env_frames_per_s'])}/s)",
        f"learner {count(task['learner_samples_per_s'])} samples/s",
        f"samples/insert {_ratio(ratio['actual'])} of {number(ratio['wanted'])}",
        f"lag {number(lag['p50'])}/{number(lag['p95'])}",
        f"replay {percent(task['replay']['fill'])}",
        f"loss {number(task['loss'])}",
        f"return {score(task['returns']['mean'])}",
        f"evaluation {_against_random(evaluation)}",
        f"incidents {summary['incidents']}",
        *_network_parts(task),
        *fleet_parts(task),
    ]
    return " | ".join(parts) + (f" | {task['failure']}" if task["failure"] else "")


def _network_parts(task: TaskSummary) -> list[str]:
    if "network" not in task:
        return []
    network = task["network"]
    return [
        f"{network['nodes']} nodes",
        f"blocks {data_size(network['block_bytes_per_s'])}/s for "
        f"{data_size(network['unpacked_bytes_per_s'])}/s",
        f"weights {data_size(network['weights_bytes_per_s'])}/s",
    ]


def _networks(summary: Summary) -> list[Text]:
    found = [(name, _network_parts(task)) for name, task in summary["tasks"].items()]
    return [Text(f"{name}: {', '.join(parts)}", "dim") for name, parts in found if parts]


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1, 1, 0), header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _header(summary: Summary, now_s: float) -> RenderableType:
    stale = is_stale(summary, now_s)
    limit = f" of {duration(summary['max_seconds'])}" if summary["max_seconds"] else ""
    tier, incidents = summary["tier"], summary["incidents"]
    asked = "" if tier["requested"] == tier["effective"] else f" (asked for {tier['requested']})"
    silence = f", last written {duration(now_s - summary['updated_at'])} ago" if stale else ""
    return Text.assemble(
        (summary["run"], "bold"),
        "  ",
        ("no sign of life" + silence, "bold red")
        if stale
        else (summary["state"], _STATE_STYLES[summary["state"]]),
        f"  {duration(summary['wall_s'])}{limit}\n",
        (f"tier {tier['effective']}{asked}", "dim"),
        (f"  object store {data_size(summary['object_store_bytes'])}", "dim"),
        (f"  incidents {incidents}\n", "bold red" if incidents else "dim"),
    )


def _failures(summary: Summary) -> list[Text]:
    return [
        Text(f"\n{name}: {task['failure']}", "red")
        for name, task in summary["tasks"].items()
        if task["failure"]
    ]


def _live_cells(name: str, task: TaskSummary) -> list[RenderableType]:
    lag, replay = task["policy_lag"], task["replay"]
    return [
        _name_cell(name, task),
        _cell(
            f"{count(task['env_frames_per_s'])} frames",
            f"{count(task['learner_samples_per_s'])} samples",
        ),
        _ratio_cell(task),
        _cell(f"p50 {number(lag['p50'])}", f"p95 {number(lag['p95'])}"),
        Group(
            _bar(replay["fill"]), _dim(percent(replay["fill"])), _dim(data_size(replay["bytes"]))
        ),
        _cell(number(task["loss"]), f"v{task['policy_version']}"),
        _returns_cell(task),
        _evaluation_cell(task),
    ]


def _final_cells(name: str, task: TaskSummary) -> list[RenderableType]:
    best = task["best"]
    return [
        _name_cell(name, task),
        _cell(f"{count(task['env_steps'])} steps", f"{count(task['learner_updates'])} updates"),
        _ratio_cell(task),
        _returns_cell(task),
        _evaluation_cell(task),
        _cell(score(best["mean_return"]), f"step {count(best['step'])}")
        if best
        else _cell(UNKNOWN),
        _cell(f"restarts {task['restarts']}", f"skipped {task['skipped_batches']}"),
    ]


def _cell(first: str, *others: str) -> RenderableType:
    return Group(first, *(_dim(line) for line in others))


def _name_cell(name: str, task: TaskSummary) -> RenderableType:
    return Group(
        Text(name, "bold"),
        Text(_words(task["state"]), _STATE_STYLES[task["state"]]),
        _dim(f"{count(task['env_frames'])} frames"),
    )


def _ratio_cell(task: TaskSummary) -> RenderableType:
    ratio = task["samples_per_insert"]
    return _cell(_ratio(ratio["actual"]), f"of {number(ratio['wanted'])}")


def _returns_cell(task: TaskSummary) -> RenderableType:
    returns = task["returns"]
    last = " ".join(number(value) for value in returns["last"][-3:])
    return _cell(score(returns["mean"]), f"{count(returns['episodes'])} games", last)


def _evaluation_cell(task: TaskSummary) -> RenderableType:
    evaluation = task["evaluation"]
    if evaluation is None:
        return _cell(UNKNOWN, "not yet")
    human = evaluation["human_normalized"]
    better = evaluation["mean_return"] >= evaluation["random_mean_return"]
    return Group(
        Text(score(evaluation["mean_return"]), "bold" if better else "bold red"),
        _dim(f"random {score(evaluation['random_mean_return'])}"),
        _dim("" if human is None else f"{percent(human)} human"),
    )


def _against_random(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return UNKNOWN
    human = evaluation["human_normalized"]
    normalized = "" if human is None else f", {percent(human)} human"
    return (
        f"{score(evaluation['mean_return'])} "
        f"(random {score(evaluation['random_mean_return'])}{normalized})"
    )


def _bar(fill: float) -> Text:
    filled = round(_FILL_CELLS * min(1.0, max(0.0, fill)))
    return Text.assemble(("━" * filled, "cyan"), ("━" * (_FILL_CELLS - filled), "bright_black"))


def _ratio(actual: float | None) -> str:
    return UNKNOWN if actual is None else f"{actual:.2f}"


def _dim(text: str) -> Text:
    return Text(text, "dim")


def _words(state: str) -> str:
    return state.replace("_", " ")
