"""The report of a run, RUN/report.html: one file to read or to send, with curves.

Invariant: the page refers to nothing outside itself and says only what the run directory says; text
that others wrote (names, causes, configuration) is escaped.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from rl_cluster.disk import write_text_atomically
from rl_cluster.telemetry.charts import Chart, Curve, Line, render_chart
from rl_cluster.telemetry.formatting import (
    UNKNOWN,
    count,
    data_size,
    duration,
    number,
    percent,
    score,
    short_count,
)
from rl_cluster.telemetry.goodput import goodput
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.page import page, pair, section, table
from rl_cluster.telemetry.run_files import RunFiles, TaskFiles, read_run
from rl_cluster.telemetry.summary import (
    Best,
    Evaluation,
    Summary,
    TaskSummary,
    is_stale,
)

FILE_NAME = "report.html"
_MAX_VIDEO_BYTES = 4_000_000


def write_report(run_dir: Path, hourly: float | None = None) -> Path:
    """Write RUN/report.html from the files of the run directory, and return its path.

    Args:
      hourly: price of the machine, for goodput; None: not known.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: a file of the run is damaged; the message names it.
      OSError: the disk is full or gone.
    """
    path = run_dir / FILE_NAME
    write_text_atomically(path, render_report(read_run(run_dir), time.time(), hourly))
    return path


def render_report(files: RunFiles, now_s: float, hourly: float | None = None) -> str:
    """Return the page.

    Args:
      now_s: Unix seconds, to tell a run that died without a word.
      hourly: price of the machine; None: not known.
    """
    name = escape(files.summary["run"] if files.summary else files.directory.resolve().name)
    sections = (
        _header(name, files, now_s),
        section("summary", "Summary", summary_table(files.summary)),
        section("goodput", "Goodput", _goodput(files, hourly)),
        *(_task_section(task, found) for task, found in files.tasks.items()),
        section("effective", "Requested and effective", _differences(files)),
        section("incidents", "Incidents", _incidents(files)),
        section("configuration", "Configuration", _configuration(files)),
    )
    return page(name, "".join(sections))


def _header(name: str, files: RunFiles, now_s: float) -> str:
    summary = files.summary
    if summary is None:
        return (
            f'<header id="state"><h1>{name}</h1><p>No summary.json: the run ended before it wrote '
            "one. Below is what its other files say.</p></header>"
        )
    stale = is_stale(summary, now_s)
    state = "no sign of life" if stale else summary["state"]
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(summary["updated_at"]))
    tier = summary["tier"]
    facts = (
        ("at work", duration(summary["wall_s"])),
        ("limit", duration(summary["max_seconds"]) if summary["max_seconds"] else "none"),
        ("tier", f"{tier['effective']} (asked for {tier['requested']})"),
        ("object store", data_size(summary["object_store_bytes"])),
        ("incidents", str(summary["incidents"])),
        ("last written", written),
    )
    items = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    kind = "failed" if stale else state
    return (
        f'<header id="state"><h1>{name} <span class="state {kind}">{state}</span></h1>'
        f"<dl>{items}</dl></header>\n"
    )


def summary_table(summary: Summary | None) -> str:
    """Return the tasks of a run as a table of HTML, and below it why any of them is parked."""
    if summary is None or not summary["tasks"]:
        return '<p class="empty">nothing is known yet</p>'
    heads = ("game", "env frames", "updates", "samples/insert", "policy lag", "replay",
             "training return", "evaluation", "random", "of human", "best", "restarts")  # fmt: skip
    rows = (_summary_cells(name, task) for name, task in summary["tasks"].items())
    failures = "".join(
        f'<p class="failure">{escape(name)}: {escape(task["failure"])}</p>'
        for name, task in summary["tasks"].items()
        if task["failure"]
    )
    return table(heads, rows, numeric=True) + failures


def _summary_cells(name: str, task: TaskSummary) -> tuple[str, ...]:
    ratio, lag, replay = task["samples_per_insert"], task["policy_lag"], task["replay"]
    return (
        pair(name, task["state"].replace("_", " ")),
        pair(count(task["env_frames"]), f"{count(task['env_frames_per_s'])}/s"),
        pair(count(task["learner_updates"]), f"{count(task['learner_samples_per_s'])} samples/s"),
        pair(
            UNKNOWN if ratio["actual"] is None else f"{ratio['actual']:.2f}",
            f"wanted {number(ratio['wanted'])}",
        ),
        pair(f"p50 {number(lag['p50'])}", f"p95 {number(lag['p95'])}"),
        pair(percent(replay["fill"]), data_size(replay["bytes"])),
        pair(score(task["returns"]["mean"]), f"{count(task['returns']['episodes'])} games"),
        *_evaluation_cells(task["evaluation"], task["best"]),
        pair(str(task["restarts"]), f"skipped {task['skipped_batches']}"),
    )


def _evaluation_cells(evaluation: Evaluation | None, best: Best | None) -> tuple[str, ...]:
    shown = ("not yet", UNKNOWN, UNKNOWN)
    if evaluation is not None:
        shown = (
            pair(score(evaluation["mean_return"]), f"± {score(evaluation['std_return'])}, "
                  f"{evaluation['episodes']} games"),
            score(evaluation["random_mean_return"]),
            percent(evaluation["human_normalized"]),
        )  # fmt: skip
    return (*shown, pair(score(best["mean_return"]), f"step {count(best['step'])}")
            if best else UNKNOWN)  # fmt: skip


def _goodput(files: RunFiles, hourly: float | None) -> str:
    steps = {name: task.steps for name, task in files.tasks.items()}
    found = goodput(steps, files.span_s, files.summary["wall_s"] if files.summary else 0.0, hourly)
    if found is None or not found.tasks:
        return '<p class="empty">nothing is known yet</p>'
    heads = ("game", "useful env steps", "done again", "per hour", "per unit of money")
    named = [(escape(name), task) for name, task in found.tasks.items()]
    rows = (
        (
            name,
            count(task.useful),
            count(task.repeated),
            count(task.per_hour),
            count(task.per_cost),
        )
        for name, task in [*named, ("all", found.whole)]
    )
    cost = "" if found.cost is None else f"; {found.cost:,.2f} in all, at {hourly:g} an hour"
    return (
        f"<p>{duration(found.span_s)} from the first start to the last sign of life, pauses and "
        f"downtime included; {duration(found.work_s)} of it at work{cost}. Every row is against "
        "the whole of that time and money.</p>" + table(heads, rows, numeric=True)
    )


def _task_section(name: str, task: TaskFiles) -> str:
    charts = "".join(render_chart(chart) for chart in _charts(task))
    body = f'<div class="charts">{charts}</div>{_video(task.videos)}'
    return section(f"task-{name}", name, body)


def _charts(task: TaskFiles) -> Iterator[Chart]:
    random = _line(task, "evaluation_random_mean_return", "random", dashed=True)
    wanted = _line(task, "samples_per_insert_wanted", "wanted", dashed=True)
    lag_p95 = _line(task, "policy_lag_p95", "p95")
    yield _evaluation_chart(task, "Evaluation by frames", "env_frames", "env frames", 1.0)
    yield _evaluation_chart(task, "Evaluation by time", "wall_s", *_time_unit(task))
    yield _chart(task, "Training return", "return_mean", "last 20 games", random)
    yield _chart(task, "Loss", "loss")
    yield _chart(task, "Env frames per second", "env_frames_per_s")
    yield _chart(task, "Learner samples per second", "learner_samples_per_s")
    yield _chart(task, "Samples per insert", "samples_per_insert_actual", "actual", wanted)
    yield _chart(task, "Policy lag, versions", "policy_lag_p50", "p50", lag_p95)
    yield _chart(task, "Replay fill", "replay_fill", format_y=percent)


def _time_unit(task: TaskFiles) -> tuple[str, float]:
    longest = max((row["wall_s"] for row in task.evaluations), default=0.0)
    units = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0))
    name, length = next((unit for unit in units if longest > 3 * unit[1]), ("s", 1.0))
    return f"wall time ({name})", length


def _line(task: TaskFiles, metric: str, label: str, *, dashed: bool = False) -> Line:
    return Line(label, task.curves[metric].points, series=1, dashed=dashed)


def _chart(
    task: TaskFiles,
    title: str,
    metric: str,
    label: str = "",
    beside: Line | None = None,
    format_y: Callable[[float], str] = number,
) -> Chart:
    """Return a chart of a metric against env frames, with another line beside it or not."""
    lines = [Line(label, task.curves[metric].points), *([beside] if beside else [])]
    explanation = f"{METRICS[metric].meaning} {METRICS[metric].how_to_read}"
    return Chart(title, explanation, "env frames", lines, short_count, format_y)


def _evaluation_chart(
    task: TaskFiles, title: str, column: str, x_label: str, x_unit: float
) -> Chart:
    policy, random = Curve(), Curve()
    for row in task.evaluations:
        policy.add(row[column] / x_unit, row["mean_return"])
        random.add(row[column] / x_unit, row["random_mean_return"])
    lines = (
        Line("policy", policy.points, dots=True),
        Line("random", random.points, series=1, dashed=True),
    )
    return Chart(title, METRICS["evaluation_mean_return"].meaning, x_label, lines, short_count)


def _video(videos: list[Path]) -> str:
    if not videos:
        return ""
    newest = videos[-1]
    size = newest.stat().st_size
    place = escape(f"{newest.parent.parent.name}/videos/{newest.name}")
    if size > _MAX_VIDEO_BYTES:
        return f'<p class="empty">{place} ({data_size(size)}) is too large to be shown here</p>'
    data = base64.b64encode(newest.read_bytes()).decode()
    return (
        f'<figure class="video"><img alt="A game of the newest evaluation" '
        f'src="data:image/gif;base64,{data}"><figcaption>{place}</figcaption></figure>'
    )


def _differences(files: RunFiles) -> str:
    if not files.effective:
        return '<p class="empty">effective.yaml was not written</p>'
    if not files.differences:
        return "<p>What was asked for is what ran.</p>"
    heads = ("setting", "requested", "effective", "reason")
    return table(heads, ([escape(str(row.get(head, UNKNOWN))) for head in heads]
                          for row in files.differences))  # fmt: skip


def _incidents(files: RunFiles) -> str:
    if not files.incidents:
        return "<p>None.</p>"
    heads = ("time (UTC)", "task", "worker", "what", "cause", "action", "detail")
    rows = (
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(incident.time)),
            *(
                escape(text or UNKNOWN)
                for text in (
                    incident.task,
                    incident.worker,
                    incident.kind,
                    incident.cause,
                    incident.action,
                    incident.detail,
                )  # fmt: skip
            ),
        ]
        for incident in reversed(files.incidents)
    )
    return table(heads, rows)


def _configuration(files: RunFiles) -> str:
    texts = (("config.yaml", files.configuration), ("effective.yaml", files.effective))
    return "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
        if text
        else f'<p class="empty">{name} was not written</p>'
        for name, text in texts
    )
