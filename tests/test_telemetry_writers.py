import json
import math
import sys

import pytest
from telemetry_samples import save_film
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from rl_cluster.telemetry.incidents import Incident
from rl_cluster.telemetry.jsonl import JsonLines, read_lines
from rl_cluster.telemetry.writers import open_writer

FIGURES = {"env_frames": 400, "loss": 0.5, "policy_version": 3}


def events(directory):
    """(tag, step, value, description) of every scalar in one directory's own event files."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = tensor_util.make_ndarray(value.tensor).item()
                found.append((value.tag, event.step, number, value.metadata.summary_description))
    return found


def values(directory, tag, plugin):
    """(step, value) of one tag, which a plugin of TensorBoard's shows."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    assert value.metadata.plugin_data.plugin_name == plugin
                    found.append((event.step, tensor_util.make_ndarray(value.tensor).tolist()))
    return found


def test_rows_are_read_back_from_jsonl(tmp_path):
    writer = open_writer(tmp_path)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    writer.write(1_001.0, 6.0, None, None, {"incidents": 2})
    assert list(read_lines(tmp_path / "metrics.jsonl")) == [
        {"time": 1_000.0, "wall_s": 5.0, "task": "Pong", "env_steps": 100, **FIGURES},
        {"time": 1_001.0, "wall_s": 6.0, "task": None, "env_steps": None, "incidents": 2},
    ]
    writer.close()


def test_what_is_not_finite_becomes_null(tmp_path):
    writer = open_writer(tmp_path)
    figures = {**FIGURES, "loss": math.nan, "q_mean": math.inf, "return_mean": None}
    writer.write(1_000.0, 5.0, "Pong", 100, figures)
    writer.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row["loss"] is row["q_mean"] is row["return_mean"] is None


def test_resumed_run_appends_and_cuts_off_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for wall_s in (5.0, 10.0):
        writer = open_writer(tmp_path)
        writer.write(1_000.0, wall_s, "Pong", 100, FIGURES)
        writer.close()
        with path.open("a") as file:
            file.write('{"time": 10')
    assert [row["wall_s"] for row in read_lines(path)] == [5.0, 10.0]


@pytest.mark.parametrize("torn_bytes", [1, 70_000, 200_000])
def test_torn_line_of_any_length_is_cut_off(tmp_path, torn_bytes):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * torn_bytes)
    JsonLines(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'


def test_damage_inside_a_file_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\nnot json\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2 is not JSON"):
        list(read_lines(path))


def test_unknown_metric_reaches_no_file_and_names_the_nearest(tmp_path):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="'los'.*did you mean loss"):
        writer.write(1_000.0, 5.0, "Pong", 100, {"env_frames": 400, "los": 0.5})
    writer.close()
    assert list(read_lines(tmp_path / "metrics.jsonl")) == []


def test_metric_of_the_run_is_refused_in_a_row_of_a_task(tmp_path):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="'incidents' belongs to a run.*task 'Pong'"):
        writer.write(1_000.0, 5.0, "Pong", 100, {**FIGURES, "incidents": 1})
    with pytest.raises(ValueError, match="'loss' belongs to a task"):
        writer.write(1_000.0, 5.0, None, None, {"loss": 1.0})
    writer.close()


def test_row_of_a_task_without_its_place_on_the_axis_is_refused(tmp_path):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="needs env_steps and the value env_frames"):
        writer.write(1_000.0, 5.0, "Pong", 100, {"loss": 0.5})
    writer.close()


def test_tensorboard_has_a_directory_per_task_against_frames(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    writer.write(1_005.0, 10.0, "Pong", 200, {"env_frames": 800, "loss": math.nan})
    writer.write(1_005.0, 10.0, "Breakout", 1, {"env_frames": 4})
    writer.write(1_005.0, 10.9, None, None, {"incidents": 2})
    writer.close()
    pong = events(tmp_path / "tensorboard" / "Pong")
    assert ("learning/loss", 400, 0.5) in [event[:3] for event in pong]
    assert [event[1:3] for event in pong if event[0] == "progress/env_frames"] == [
        (400, 400.0),
        (800, 800.0),
    ]
    assert [event[1] for event in pong if event[0] == "learning/loss"] == [400]
    assert pong[0][3].startswith("Frames the game's emulator showed")
    assert [event[:3] for event in events(tmp_path / "tensorboard" / "Breakout")] == [
        ("progress/env_frames", 4, 4.0)
    ]
    assert [event[:3] for event in events(tmp_path / "tensorboard")] == [
        ("health/incidents", 10, 2.0)
    ]


def test_tensorboard_sees_rows_after_a_flush(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    writer.flush()
    assert len(events(tmp_path / "tensorboard" / "Pong")) == len(FIGURES)
    writer.close()


def test_tensorboard_shows_incidents_as_text_with_the_next_row_of_their_task(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    died = Incident(1_000.0, "Pong", "learner", "worker_failed", "it died", "restart")
    writer.incident(died)
    writer.incident(Incident(1_000.0, None, None, "load_changed", "little memory", "a game less"))
    writer.write(1_001.0, 5.0, "Pong", 100, FIGURES)
    writer.write(1_006.0, 10.0, "Pong", 200, FIGURES)
    writer.write(1_006.0, 10.9, None, None, {"incidents": 2})
    writer.close()
    pong = values(tmp_path / "tensorboard" / "Pong", "incidents", "text")
    assert pong == [(400, b"**worker_failed** learner it died: restart")]
    assert values(tmp_path / "tensorboard", "incidents", "text") == [
        (10, b"**load_changed**  little memory: a game less")
    ]


def test_tensorboard_shows_each_best_game_once_as_the_film_that_it_is(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    path = save_film(tmp_path / "Pong" / "videos" / "best.gif")
    for wall_s in (10.0, 15.0):
        writer.write(1_000.0 + wall_s, wall_s, "Pong", 200, {"env_frames": 800})
    writer.close()
    found = values(tmp_path / "tensorboard" / "Pong", "videos/best", "images")
    assert found == [(800, [b"168", b"168", path.read_bytes()])]


def test_missing_extra_is_an_error_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[tensorboard\]'"):
        open_writer(tmp_path, tensorboard=True)


def test_close_may_be_repeated(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    writer.close()
    writer.close()
