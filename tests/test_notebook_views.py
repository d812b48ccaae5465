"""What a notebook shows of a run's directory: tables, curves, films, blocks, settings, names."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from naive_replay import numbered_block
from PIL import Image
from telemetry_samples import NOW_S, run_summary, task_summary
from test_run_directory import held_by_another_process

import rl_cluster
from rl_cluster import config_file
from rl_cluster.effective import EffectiveConfig
from rl_cluster.levers import LIVE
from rl_cluster.notebook.curves import CurveReader
from rl_cluster.notebook.extra import needs
from rl_cluster.notebook.names import tree_of_names
from rl_cluster.notebook.recorded import RecordedRun
from rl_cluster.notebook.refresh import keep_fresh
from rl_cluster.notebook.settings_form import SettingsForm
from rl_cluster.notebook.status import next_look_s
from rl_cluster.replay.block import Block
from rl_cluster.replay.journal import Journal, JournalLimits, JournalPlace
from rl_cluster.streams.cutting import ROW
from rl_cluster.telemetry.incidents import Incident, IncidentLog
from rl_cluster.telemetry.summary import task_metrics, write_summary
from rl_cluster.telemetry.writers import MetricsWriter, open_writer
from rl_cluster.video import VideoRecorder

CONFIG = {
    "tasks": {
        "Pong": {"learner": {"batch": 48}},
        "field": {"env": {"entry": "envs.rover:make"}, "stream": {"source": "nats"}},
    }
}
PNG = b"\x89PNG"


def write_rows(writer: MetricsWriter, task: str, start: int, count: int) -> None:
    figures = task_metrics(task_summary())
    for row in range(start, start + count):
        figures.update(env_steps=100 * row, env_frames=400 * row, loss=1 / (row + 1))
        figures["return_mean"] = None if row == 0 else float(row)
        writer.write(NOW_S + row, float(row), task, 100 * row, figures)


def write_effective(run_dir: Path, **tasks: dict[str, Any]) -> None:
    config = config_file.from_mapping({"tasks": tasks})
    (run_dir / "effective.yaml").write_text(EffectiveConfig(config, ()).dump())


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    writer = open_writer(tmp_path)
    for task in ("Pong", "Ms-Pacman"):
        write_rows(writer, task, 0, 5)
    writer.write(NOW_S + 9, 9.0, None, None, {"incidents": 1})
    writer.close()
    tasks = {"Pong": task_summary(), "Ms-Pacman": task_summary(failure="<b>full</b>")}
    write_summary(tmp_path, run_summary(state="completed", tasks=tasks))
    config = config_file.from_mapping(CONFIG)
    (tmp_path / "config.yaml").write_text(config_file.dump(config))
    write_effective(tmp_path, **CONFIG["tasks"])
    return tmp_path


@pytest.fixture
def run(run_dir: Path) -> RecordedRun:
    return rl_cluster.open_run(run_dir)


def test_a_directory_that_holds_no_run_is_said_to_hold_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run.*config\.yaml"):
        rl_cluster.open_run(tmp_path)


def test_every_metric_is_in_the_frame_and_what_is_unknown_is_nan(run: RecordedRun) -> None:
    frame = run.frame()
    assert len(frame) == 11
    assert frame["time"][0].timestamp() == NOW_S and str(frame["time"].dt.tz) == "UTC"
    assert frame["loss"].tolist()[:5] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert np.isnan(frame["return_mean"][0]) and frame["return_mean"][1] == 1
    assert frame["incidents"].dropna().tolist() == [1]
    only = run.frame("Ms-Pacman")
    assert set(only["task"]) == {"Ms-Pacman"} and len(only) == 5


def test_a_frame_without_rows_has_the_same_columns(run: RecordedRun, run_dir: Path) -> None:
    columns = list(run.frame().columns)
    (run_dir / "metrics.jsonl").unlink()
    assert list(run.frame().columns) == columns and len(run.frame()) == 0


def test_a_task_that_is_not_there_is_refused_with_those_that_are(run: RecordedRun) -> None:
    for look in (run.frame, run.videos, run.blocks, lambda task: run.curves(task=task)):
        with pytest.raises(KeyError, match="no task 'Pogn': there are Pong, Ms-Pacman"):
            look("Pogn")


def test_incidents_are_a_frame(run: RecordedRun, run_dir: Path) -> None:
    log = IncidentLog(run_dir)
    log.append(Incident(NOW_S, "Pong", None, "paused", "asked for", "paused"))
    log.close()
    assert run.incidents()[["task", "kind", "cause"]].values.tolist() == [
        ["Pong", "paused", "asked for"]
    ]


def test_curves_have_a_line_for_each_task_and_what_it_is_compared_with(run: RecordedRun) -> None:
    loss, evaluation = run.curves("loss", "evaluation_mean_return").figure().axes
    assert [line.get_label() for line in loss.lines] == ["Ms-Pacman", "Pong"]
    assert [line.get_color() for line in loss.lines] == ["C0", "C1"]
    assert [line.get_color() for line in evaluation.lines] == ["C0", "C0", "C1", "C1"]
    assert loss.lines[0].get_xydata().tolist() == [[400 * k, 1 / (k + 1)] for k in range(5)]
    assert [line.get_linestyle() for line in evaluation.lines] == ["-", "--"] * 2
    (alone,) = run.curves("loss", task="Pong").figure().axes
    assert len(alone.lines) == 1
    assert run.curves()._repr_png_().startswith(PNG)


def test_curves_go_on_behind_the_last_whole_line(run: RecordedRun, run_dir: Path) -> None:
    curves = run.curves("loss", task="Pong")
    assert len(curves.figure().axes[0].lines[0].get_xydata()) == 5
    writer = open_writer(run_dir)
    write_rows(writer, "Pong", 5, 3)
    writer.close()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"task": "Pong", "env_fra')
    assert len(curves.figure().axes[0].lines[0].get_xydata()) == 8


def test_a_metric_that_cannot_be_drawn_is_refused(run: RecordedRun) -> None:
    with pytest.raises(ValueError, match="did you mean loss"):
        run.curves("los")
    with pytest.raises(ValueError, match=r"no metric of a task: look at it in run\.frame"):
        run.curves("object_store_bytes")


def test_a_live_chart_of_a_run_that_is_over_is_drawn_and_rests(
    run: RecordedRun, run_dir: Path
) -> None:
    chart = run.curves("loss").live(period_s=0.01)
    for thread in [t for t in threading.enumerate() if t.name.startswith(f"curves of {run_dir}")]:
        thread.join(timeout=60)
        assert not thread.is_alive(), "the run is over"
    assert bytes(chart.value).startswith(PNG)


def test_a_live_chart_outlasts_a_silence_and_rests_with_the_run(
    run: RecordedRun, run_dir: Path
) -> None:
    write_summary(run_dir, run_summary(state="running", updated_at=0.0))
    chart = run.curves("loss").live(period_s=0.01)
    (thread,) = [t for t in threading.enumerate() if t.name.startswith(f"curves of {run_dir}")]
    for start in (5, 10):
        before, writer = chart.value, open_writer(run_dir)
        write_rows(writer, "Pong", start, 5)
        writer.close()
        deadline_s = time.monotonic() + 60
        while chart.value == before:
            assert time.monotonic() < deadline_s, "it is not drawn anew any more"
            time.sleep(0.01)
        write_summary(run_dir, run_summary(state="running", updated_at=time.time()))
    write_summary(run_dir, run_summary(state="completed"))
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_curves_that_two_threads_read_hold_every_line_once(run: RecordedRun, run_dir: Path) -> None:
    writer = open_writer(run_dir)
    write_rows(writer, "Pong", 5, 3_000)
    writer.close()
    reader, alone = (CurveReader(run_dir / "metrics.jsonl", ["loss"]) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(reader.read) for _ in range(8)]
    assert [look.result() for look in looks] == [alone.read()] * 8


def test_a_thing_shown_again_replaces_the_one_before() -> None:
    rounds = [threading.Event(), threading.Event()]

    def refresh(number: int) -> float:
        rounds[number].set()
        return 0.01

    first = keep_fresh("it", 0.01, lambda: refresh(0))
    assert rounds[0].wait(60)
    second = keep_fresh("it", 0.01, lambda: refresh(1))
    first.join(timeout=60)
    assert not first.is_alive() and rounds[1].wait(60)
    keep_fresh("it", 0.01, lambda: None).join(timeout=60)
    second.join(timeout=60)
    assert not second.is_alive()


def test_the_table_of_states_escapes_what_others_wrote(run: RecordedRun, run_dir: Path) -> None:
    html = run._repr_html_()
    assert "&lt;b&gt;full&lt;/b&gt;" in html and "completed" in html and "1.24 M" in html
    write_summary(run_dir, run_summary(state="running", updated_at=0.0))
    assert "no sign of life" in run._repr_html_()


def test_a_run_is_looked_at_until_it_is_over_and_less_often_while_it_is_silent(
    run_dir: Path,
) -> None:
    assert next_look_s(run_dir, 2.0) is None
    with held_by_another_process(run_dir, resume=True):
        assert next_look_s(run_dir, 2.0) == 2.0, "it is about to go on"
    write_summary(run_dir, run_summary(state="running", updated_at=time.time()))
    assert next_look_s(run_dir, 2.0) == 2.0
    write_summary(run_dir, run_summary(state="running", updated_at=0.0))
    assert next_look_s(run_dir, 2.0) == 10.0
    (run_dir / "summary.json").unlink()
    assert next_look_s(run_dir, 2.0) == 2.0


def test_films_move_in_html_and_are_strips_elsewhere(run: RecordedRun, run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Pong has no videos.*evaluation\.video"):
        run.videos("Pong")
    film = VideoRecorder()
    for step in range(20):
        film.add(np.full((84, 84), 10 * step, np.uint8))
    for name in ("best", "newest"):
        film.save(run_dir / "Pong" / "videos" / f"{name}.gif")
    videos = run.videos("Pong")
    assert [path.name for path in videos.paths] == ["newest.gif", "best.gif"]
    assert videos._repr_html_().count('src="data:image/gif;base64,') == 2
    strip = Image.open(io.BytesIO(videos._repr_png_()))
    assert strip.size == (8 * 168, 2 * 168)
    assert strip.getpixel((10, 10)) == (0, 0, 0) and strip.getpixel((1300, 10)) == (180,) * 3


def journal(run_dir: Path, *blocks: Block) -> None:
    place = JournalPlace(run_dir / "Pong" / "replay", blocks[0].schema)
    limits = JournalLimits(1 << 30, 0)
    written = Journal(place, limits)
    for block_id, block in enumerate(blocks):
        assert written.append(block_id, block)
    written.flush()


def rover_block() -> Block:
    rows = 9
    observations = np.zeros((rows, ROW), np.float16)
    observations[:, 128 * 5 + 7] = 1  # an obstacle at row 5, column 7
    observations[:, 128 * 128 + 128 * 3 + 2] = 0.5  # ground seen at row 3, column 2
    flags, ends = np.zeros(rows, np.bool_), np.arange(rows) == rows - 1
    return Block(
        "r1", 0, 0, rows - 1, observations, np.full((rows, 2), 0.25, np.float32),
        np.ones(rows, np.float32), ends, flags, flags, np.full(rows, 3, np.int32), "m#0",
    )  # fmt: skip


def test_blocks_are_the_newest_of_the_journal_as_they_were_observed(
    run: RecordedRun, run_dir: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no blocks on disk.*replay\.journal"):
        run.blocks("Pong")
    journal(run_dir, *(numbered_block(number) for number in range(5)))
    shown = run.blocks("Pong", count=2)
    assert [block.sequence for block in shown.blocks] == [
        numbered_block(number).sequence for number in (4, 3)
    ]
    block, first = shown.blocks[0], shown.figure().axes[0]
    assert np.array_equal(first.images[0].get_array(), block.observations[block.context])
    assert f"action {block.actions[block.context]}" in first.get_xlabel()
    assert shown._repr_png_().startswith(PNG)


def test_a_rovers_block_is_its_view_from_above(run: RecordedRun, run_dir: Path) -> None:
    journal(run_dir, rover_block())
    (run_dir / "Pong" / "rovers").mkdir()
    axes = run.blocks("Pong").figure().axes[0]
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels.shape == (128, 128, 3)
    assert pixels[5, 7].tolist() == [255, 0, 0] and pixels[3, 2].tolist() == [0, 127, 0]
    assert axes.get_xlabel() == "action 0.25, 0.25\nreward +1"


def offered(typed: str, **objects: Any) -> list[str]:
    """What TAB offers in IPython."""
    shell = InteractiveShell.instance()
    shell.user_ns.update(objects)
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(typed, len(typed))]


def test_tab_offers_tasks_and_live_settings(run: RecordedRun) -> None:
    assert {"frame", "curves", "videos", "blocks", "tasks"} <= set(offered("run.", run=run))
    assert offered("run.tasks.", run=run) == ["Pong"]
    assert set(offered('run.tasks["', run=run)) == {"Pong", "Ms-Pacman"}
    assert run.tasks.Pong == run.tasks["Pong"] == "Pong" and list(run.tasks) == [
        "Pong",
        "Ms-Pacman",
    ]
    settings = tree_of_names(LIVE)
    assert settings.learner.batch == "learner.batch"
    assert set(offered("settings.replay.", settings=settings)) == {"samples_per_insert"}
    with pytest.raises(AttributeError, match="no task 'Breakout': there are Pong"):
        run.tasks.Breakout  # noqa: B018


def test_a_form_shows_what_runs_and_hands_on_only_what_was_changed(run_dir: Path) -> None:
    form = SettingsForm(run_dir)
    form.show(None)
    fields = {field.description: field for field in form.box.children}
    assert fields["learner.batch"].value == 48 and "stream.silence_s" not in fields
    assert form.changed() == {}
    fields["learner.batch"].value = 64
    assert form.changed() == {"learner.batch": 64}
    form.taken({"learner.batch": 64})
    assert form.changed() == {}
    form.show("field")
    names = {field.description for field in form.box.children}
    assert "stream.silence_s" in names and "rollout.epsilon_base" not in names


def fields_of(form: SettingsForm) -> dict[str, Any]:
    return {field.description: field for field in form.box.children}


def test_where_tasks_differ_all_of_them_can_be_set_to_what_one_has(run_dir: Path) -> None:
    rate = {"learner": {"learning_rate": 2e-4}}
    write_effective(run_dir, Pong={"learner": {"batch": 48}}, Breakout=rate)
    tasks = {"Pong": task_summary(), "Breakout": task_summary()}
    write_summary(run_dir, run_summary(tasks=tasks))
    form = SettingsForm(run_dir)
    form.show(None)
    fields = fields_of(form)
    assert "48" in fields["learner.batch"].placeholder
    fields["learner.batch"].value = "48"
    assert form.changed() == {"learner.batch": 48}, "where tasks differ untouched, they stay so"
    form.taken({"learner.batch": 48})
    write_effective(run_dir, Pong={"learner": {"batch": 48}}, Breakout={"learner": {"batch": 48}})
    form.follow()
    assert fields_of(form)["learner.batch"].value == 48 and form.changed() == {}

    tasks["Pong"] = task_summary(state="completed")
    write_summary(run_dir, run_summary(tasks=tasks))
    write_effective(run_dir, Pong={"learner": {"batch": 48}}, Breakout={"learner": {"batch": 64}})
    form.follow()
    assert fields_of(form)["learner.batch"].value == 64, "what has ended cannot change any more"


def test_an_extra_that_is_not_installed_is_named_with_its_line() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[notebook\]'"),
        needs("notebook"),
    ):
        import no_such_module  # noqa: F401


def test_a_handle_loads_nothing_of_the_extra_until_something_is_drawn() -> None:
    code = (
        "import sys, rl_cluster.notebook.recorded, rl_cluster.notebook.names; print(*sys.modules)"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"\b(pandas|matplotlib|ipywidgets|IPython|ray|torch)\b", modules) == []


def test_blocks_written_while_they_are_read_are_whole(run: RecordedRun, run_dir: Path) -> None:
    """The journal's open segment may end in the midst of a record."""
    journal(run_dir, *(numbered_block(number) for number in range(3)))
    (segment,) = (run_dir / "Pong" / "replay").iterdir()
    segment.write_bytes(segment.read_bytes()[:-20])
    assert [block.sequence for block in run.blocks("Pong").blocks] == [
        numbered_block(number).sequence for number in (1, 0)
    ]
