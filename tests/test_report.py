import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from telemetry_samples import NOW_S, fresh_task_summary, run_summary, task_summary

from rl_cluster.telemetry.charts import Curve, ticks
from rl_cluster.telemetry.incidents import Incident, IncidentLog
from rl_cluster.telemetry.jsonl import JsonLines
from rl_cluster.telemetry.report import render_report, write_report
from rl_cluster.telemetry.run_files import read_run
from rl_cluster.telemetry.summary import task_metrics, write_summary
from rl_cluster.telemetry.writers import open_writer
from rl_cluster.video import VideoRecorder

REASON = "256 environments need 22.6 GB; 14.1 GB are free"
VOID = {"meta", "img"}
SVG_SHAPES = {"line", "circle", "polyline"}


class Page(HTMLParser):
    """Collects what a test asks about, and refuses tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open_tags, self.ids, self.references, self.tags = [], [], [], []
        self.feed(html)
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.references.append(value)
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_SHAPES

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def write_task(run_dir, writer, name, rows=30):
    figures = task_metrics(task_summary())
    evaluations = JsonLines(run_dir / name / "evaluations.jsonl")
    for row in range(rows):
        steps, wall_s = 100 * row, 5.0 * row
        figures.update(env_steps=steps, env_frames=4 * steps, loss=1 / (row + 1))
        writer.write(NOW_S + wall_s, wall_s, name, steps, figures)
        if row % 10 == 9:
            evaluations.append({"time": NOW_S + wall_s, "wall_s": wall_s, "env_steps": steps,
                                "env_frames": 4 * steps, "mean_return": -20.0 + row,
                                "random_mean_return": -20.7})  # fmt: skip
    evaluations.close()


@pytest.fixture
def run_dir(tmp_path):
    writer = open_writer(tmp_path)
    write_task(tmp_path, writer, "Pong")
    write_task(tmp_path, writer, "Breakout")
    writer.write(NOW_S, 150.0, None, None, {"incidents": 1})
    writer.close()
    failed = fresh_task_summary(state="failed", failure="learner-0 died 6 times")
    write_summary(
        tmp_path,
        run_summary(state="completed", tasks={"Pong": task_summary(), "Breakout": failed}),
    )
    log = IncidentLog(tmp_path)
    log.append(Incident(NOW_S, "Pong", "rollout-0", "died", "signal <9>", "restarted", "a & b"))
    log.close()
    (tmp_path / "config.yaml").write_text("tasks:\n  Pong: {}\n# <script>alert(1)</script>\n")
    difference = {"setting": "tasks.Pong.rollout.environments", "requested": 256, "effective": 16,
                  "reason": REASON}  # fmt: skip
    (tmp_path / "effective.yaml").write_text(yaml.safe_dump({"differences": [difference]}))
    film = VideoRecorder()
    for step in range(4):
        film.add(np.full((84, 84), 40 * step, np.uint8))
    film.save(tmp_path / "Pong" / "videos" / "newest.gif")
    return tmp_path


def test_report_has_every_section_with_the_runs_own_figures(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    html = path.read_text(encoding="utf-8")
    assert Page(html).ids == [
        "state", "summary", "goodput", "task-Pong", "task-Breakout", "effective", "incidents",
        "configuration",
    ]  # fmt: skip
    for text in ("quickstart", "completed", "1.24 M", "wanted 8", "-17.2", "-20.7", "9.9 %",
                 "-16.9", "learner-0 died 6 times", "tasks.Pong.rollout.environments", REASON,
                 "signal &lt;9&gt;", "a &amp; b", "Evaluation by frames", "Evaluation by time",
                 "Training return", "Loss", "Env frames per second", "Learner samples per second",
                 "Samples per insert", "Policy lag", "Pong/videos/newest.gif"):  # fmt: skip
        assert text in html


def test_report_refers_to_nothing_outside_itself(run_dir):
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    assert [reference[:22] for reference in page.references] == ["data:image/gif;base64,"]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub('base64,[^"]*', "", html))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_text_of_others_is_escaped(run_dir):
    write_summary(
        run_dir, run_summary(run="<b>run</b>", tasks={"<i>": task_summary(failure="<u>")})
    )
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in html
    assert not {"script", "b", "i", "u"} & set(Page(html).tags)


def test_each_game_has_its_curves(run_dir):
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert html.count("<figure title=") == 2 * 9
    assert "no data yet" not in html
    # Training return, the two evaluations, samples per insert and lag have two lines each.
    assert html.count("<polyline") == 2 * (9 + 5)


@pytest.mark.parametrize(
    "missing",
    ["summary.json", "metrics.jsonl", "incidents.jsonl", "effective.yaml", "config.yaml",
     "Pong/evaluations.jsonl", "Pong/videos/newest.gif"],
)  # fmt: skip
def test_run_cut_short_still_has_its_report(run_dir, missing):
    (run_dir / missing).unlink()
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert {"task-Pong", "task-Breakout", "incidents", "configuration"} <= set(page.ids)


def test_empty_directory_has_a_report_and_none_has_an_error(tmp_path):
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No summary.json" in html
    assert "nothing is known yet" in html
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        write_report(tmp_path / "absent")


def test_report_of_a_run_that_died_without_a_word_says_so(tmp_path):
    write_summary(tmp_path, run_summary())
    assert "no sign of life" in render_report(read_run(tmp_path), NOW_S + 3_600)
    assert "no sign of life" not in render_report(read_run(tmp_path), NOW_S + 5)


def test_video_that_is_too_large_is_named_instead(run_dir):
    (run_dir / "Pong" / "videos" / "newest.gif").write_bytes(b"GIF89a" + bytes(4_000_000))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "Pong/videos/newest.gif (4 MB) is too large" in html
    assert "base64" not in html


def test_differences_that_do_not_exist_are_said_not_to(run_dir):
    (run_dir / "effective.yaml").write_text("differences: []\n")
    assert "What was asked for is what ran" in write_report(run_dir).read_text(encoding="utf-8")


def test_what_a_resumed_run_did_again_replaces_what_it_did_before():
    curve = Curve()
    for x, y in ((1, 10), (2, 20), (3, 30), (2, 21), (4, 40)):
        curve.add(x, y)
    assert curve.points == [(1, 10), (2, 21), (4, 40)]


def test_curve_of_weeks_keeps_few_points_its_range_and_its_mean():
    curve = Curve()
    for x in range(100_000):
        curve.add(x, x % 10)
    points = curve.points
    assert 100 < len(points) < 300
    assert all(before[0] < after[0] for before, after in zip(points, points[1:], strict=False))
    assert points[0][0] < 1_000
    assert points[-1][0] > 99_000
    assert all(abs(y - 4.5) < 0.6 for _, y in points[:-1])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-21, 21, [-20, -10, 0, 10, 20]), (7.7, 8.1, None),
     (0, 1.2e9, None), (1e-6, 3e-6, None)],
)  # fmt: skip
def test_ticks_are_few_round_and_inside(low, high, expected):
    values = ticks(low, high)
    assert 2 <= len(values) <= 7
    assert low - 1e-9 <= values[0] < values[-1] <= high + 1e-9
    assert expected is None or values == pytest.approx(expected)


def test_goodput_counts_downtime_and_steps_done_again(tmp_path):
    """Two sessions of 100 s with 3,400 s between; the second begins 200 steps earlier."""
    writer = open_writer(tmp_path)
    figures = task_metrics(task_summary())
    for time_s, wall_s, steps in ((0, 0, 0), (100, 100, 1000), (3500, 100, 800), (3600, 200, 1800)):
        values = figures | {"env_steps": steps, "env_frames": 4 * steps}
        writer.write(NOW_S + time_s, wall_s, "Pong", steps, values)
        values |= {"env_steps": steps // 3, "env_frames": 4 * (steps // 3)}
        if steps > 1000:
            writer.write(NOW_S + time_s, wall_s, "Boxing", steps // 3, values)
    writer.close()
    tasks = {"Pong": task_summary(), "Boxing": task_summary()}
    write_summary(tmp_path, run_summary(updated_at=NOW_S + 3600, wall_s=200.0, tasks=tasks))
    html = write_report(tmp_path, hourly=2.0).read_text(encoding="utf-8")
    (section,) = re.findall(r'<section id="goodput">.*?</section>', html, re.DOTALL)
    cells = re.findall(r"<td>(.*?)</td>", section)
    assert cells == [
        "Pong", "1,800", "200", "1,800", "900",
        "Boxing", "600", "0", "600", "300",
        "all", "2,400", "200", "2,400", "1,200",
    ]  # fmt: skip
    assert "1 h 0 min from the first start" in section and "3 min 20 s of it at work" in section
    assert "2.00 in all, at 2 an hour" in section


def test_goodput_begins_with_the_boot_that_came_before_the_first_figures(run_dir):
    entry = {"boot_id": "b", "time": NOW_S - 3600.0, "load": {}, "clean": False}
    boots = JsonLines(run_dir / "boots.jsonl")
    boots.append(entry)
    boots.close()
    assert read_run(run_dir).span_s == (NOW_S - 3600.0, NOW_S + 145.0)
