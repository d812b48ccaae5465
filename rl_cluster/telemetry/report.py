"""The report of a run, RUN/report.html: one file to read or to send, with curves.

Invariant: the page refers to nothing outside itself and says only what the run directory says; text
that others wrote (names, causes, configuration) is escaped.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path

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
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.run_files import RunFiles, TaskFiles, read_run
from rl_cluster.telemetry.summary import (
    Best,
    Evaluation,
    Summary,
    TaskSummary,
    is_stale,
    write_text_atomically,
)

FILE_NAME = "report.html"
_MAX_VIDEO_BYTES = 4_000_000


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from the files of the run directory, and return its path.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: a file of the run is damaged; the message names it.
      OSError: the disk is full or gone.
    """
    path = run_dir / FILE_NAME
    write_text_atomically(path, render_report(read_run(run_dir), time.time()))
    return path


def render_report(files: RunFiles, now_s: float) -> str:
    """Return the page.

    Args:
      now_s: Unix seconds, to tell a run that died without a word.
    """
    name = escape(files.summary["run"] if files.summary else files.directory.resolve().name)
    sections = (
        _header(name, files, now_s),
        _section("summary", "Summary", summary_table(files.summary)),
        *(_task_section(task, found) for task, found in files.tasks.items()),
        _section("effective", "Requested and effective", _differences(files)),
        _section("incidents", "Incidents", _incidents(files)),
        _section("configuration", "Configuration", _configuration(files)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · rl-cluster</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{body}</section>\n'


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
    return _table(heads, rows, numeric=True) + failures


def _summary_cells(name: str, task: TaskSummary) -> tuple[str, ...]:
    ratio, lag, replay = task["samples_per_insert"], task["policy_lag"], task["replay"]
    return (
        _pair(name, task["state"].replace("_", " ")),
        _pair(count(task["env_frames"]), f"{count(task['env_frames_per_s'])}/s"),
        _pair(count(task["learner_updates"]), f"{count(task['learner_samples_per_s'])} samples/s"),
        _pair(
            UNKNOWN if ratio["actual"] is None else f"{ratio['actual']:.2f}",
            f"wanted {number(ratio['wanted'])}",
        ),
        _pair(f"p50 {number(lag['p50'])}", f"p95 {number(lag['p95'])}"),
        _pair(percent(replay["fill"]), data_size(replay["bytes"])),
        _pair(score(task["returns"]["mean"]), f"{count(task['returns']['episodes'])} games"),
        *_evaluation_cells(task["evaluation"], task["best"]),
        _pair(str(task["restarts"]), f"skipped {task['skipped_batches']}"),
    )


def _evaluation_cells(evaluation: Evaluation | None, best: Best | None) -> tuple[str, ...]:
    shown = ("not yet", UNKNOWN, UNKNOWN)
    if evaluation is not None:
        shown = (
            _pair(score(evaluation["mean_return"]), f"± {score(evaluation['std_return'])}, "
                  f"{evaluation['episodes']} games"),
            score(evaluation["random_mean_return"]),
            percent(evaluation["human_normalized"]),
        )  # fmt: skip
    return (*shown, _pair(score(best["mean_return"]), f"step {count(best['step'])}")
            if best else UNKNOWN)  # fmt: skip


def _pair(first: str, second: str) -> str:
    return f"{escape(first)}<small>{escape(second)}</small>"


def _task_section(name: str, task: TaskFiles) -> str:
    charts = "".join(render_chart(chart) for chart in _charts(task))
    body = f'<div class="charts">{charts}</div>{_video(task.videos)}'
    return _section(f"task-{name}", name, body)


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
    return _table(heads, ([escape(str(row.get(head, UNKNOWN))) for head in heads]
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
    return _table(heads, rows)


def _configuration(files: RunFiles) -> str:
    texts = (("config.yaml", files.configuration), ("effective.yaml", files.effective))
    return "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
        if text
        else f'<p class="empty">{name} was not written</p>'
        for name, text in texts
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, numeric: bool = False) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="numeric"' if numeric else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# The colours of the lines are Okabe and Ito's, which colour-blind readers tell apart.
_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1c1e21; --soft: #656b73;
  --rule: #e3e5e8; --good: #00795a; --bad: #b3400a; --s0: #0072b2; --s1: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e8eaed;
  --soft: #9aa1aa; --rule: #31353b; --good: #3ccf9f; --bad: #ff9354; --s0: #56b4e9;
  --s1: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { margin: 0 0 16px; font-size: 28px; letter-spacing: -.01em; }
h2 { margin: 44px 0 12px; font-size: 19px; }
.state { margin-left: 6px; padding: 3px 11px; border: 1px solid currentColor; border-radius: 99px;
  font-size: 13px; font-weight: 500; letter-spacing: 0; vertical-align: middle;
  color: var(--soft); }
.state.completed, .state.running { color: var(--good); }
.state.failed, .failure { color: var(--bad); }
dl { display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 0; }
dt, th, small, .empty, figcaption, summary { color: var(--soft); }
dt { font-size: 12px; } dd { margin: 0; font-weight: 500; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 9px 11px; text-align: left; vertical-align: top; }
th { font-size: 12px; font-weight: 500; white-space: nowrap; }
td { border-top: 1px solid var(--rule); }
.numeric th:not(:first-child), .numeric td:not(:first-child) { text-align: right; }
.numeric td { white-space: nowrap; } .numeric td:first-child { font-weight: 600; }
small { display: block; font-size: 12px; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px 8px; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; }
.charts figcaption { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: center;
  font-size: 13px; font-weight: 600; color: var(--text); }
.key { font-weight: 400; font-size: 12px; color: var(--soft); }
.key svg { display: inline-block; width: 18px; height: 6px; margin-right: 5px;
  vertical-align: middle; }
figure svg { display: block; width: 100%; height: auto; }
figure .empty { display: grid; place-items: center; height: 160px; margin: 0; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
polyline { fill: none; stroke-linejoin: round; }
polyline, .key line { stroke-width: 1.8; }
.dashed { stroke-dasharray: 5 4; }
.series-0 { stroke: var(--s0); } circle.series-0 { fill: var(--s0); }
.series-1 { stroke: var(--s1); } circle.series-1 { fill: var(--s1); }
.video { display: inline-block; margin-top: 14px; font-size: 12px; }
.video img { display: block; height: 240px; image-rendering: pixelated; margin-bottom: 6px; }
details { margin-bottom: 8px; } summary { cursor: pointer; }
pre { overflow-x: auto; padding: 14px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
"""
