import json
import math
import os
import struct
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util
from wandb.proto import wandb_internal_pb2

from rl_cluster.telemetry.jsonl import JsonLines, read_lines
from rl_cluster.telemetry.writers import WandbOptions, open_writer, wandb_mode

FIGURES = {"env_frames": 400, "loss": 0.5, "policy_version": 3}


def options(**ids: str) -> WandbOptions:
    return WandbOptions(project="tests", group="quickstart", ids=ids, config={"seed": 1})


def events(directory):
    """(tag, step, value, description) of every scalar in one directory's own event files."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = tensor_util.make_ndarray(value.tensor).item()
                found.append((value.tag, event.step, number, value.metadata.summary_description))
    return found


def wandb_records(path):
    """The records of a short offline W&B run: a header, then checksum, length, type and record."""
    data, position = path.read_bytes(), 7
    assert len(data) < 32_768, "longer files come in blocks"
    while position < len(data):
        _, length, _ = struct.unpack_from("<IHB", data, position)
        position += 7 + length
        yield wandb_internal_pb2.Record.FromString(data[position - length : position])


def wandb_history(path):
    """The rows of that run, by key."""
    return [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.HasField("history")
    ]


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


def test_wandb_writes_a_grouped_run_per_task_and_a_second_writer_resumes_its_id(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = {"Pong": "pong-id", "Breakout": "breakout-id"}
    for frames in (400, 800):
        writer = open_writer(tmp_path, wandb=options(**ids))
        opened_s = int(time.time())
        writer.write(1_000.0, 5.0, None, None, {"incidents": 2})
        writer.write(1_000.0, 5.0, "Pong", 100, {"env_frames": frames, "loss": 0.5})
        writer.write(1_000.0, 5.0, "Breakout", 100, {"env_frames": frames, "loss": math.nan})
        writer.close()
        while int(time.time()) == opened_s:  # W&B names a session's directory by the second
            time.sleep(0.02)
    directory = tmp_path / "wandb"
    pong = sorted(directory.glob("offline-run-*-pong-id/run-pong-id.wandb"))
    assert len(pong) == 2
    assert len(list(directory.glob("offline-run-*-breakout-id"))) == 2
    run = next(record.run for record in wandb_records(pong[0]) if record.HasField("run"))
    assert (run.run_id, run.run_group, run.project) == ("pong-id", "quickstart", "tests")
    for path, frames in zip(pong, (400, 800), strict=True):
        (row,) = wandb_history(path)
        assert row["_step"] == row["progress/env_frames"] == frames
        assert row["learning/loss"] == 0.5
        assert (row["health/incidents"], row["health/wall_s"]) == (2, 5)


def test_wandb_leaves_out_rows_behind_the_newest_step(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = open_writer(tmp_path, wandb=options(Pong="pong-id"))
    for frames in (400, 200, 600):
        writer.write(1_000.0, 5.0, "Pong", 100, {"env_frames": frames})
    writer.close()
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert [row["_step"] for row in wandb_history(path)] == [400, 600]
    assert len(list(read_lines(tmp_path / "metrics.jsonl"))) == 3


def test_wandb_is_offline_without_a_login_and_as_its_variable_says_otherwise(tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="'ofline'.*online, offline or disabled"):
        wandb_mode()


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb": options(Pong="pong-id")})],
)
def test_missing_extra_is_an_error_with_the_line_that_installs_it(
    tmp_path, monkeypatch, extra, arguments
):
    module = {"tensorboard": "tensorboard.summary", "wandb": "wandb"}[extra]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'rl-cluster\[{extra}\]'"):
        open_writer(tmp_path, **arguments)


def test_close_may_be_repeated(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    writer.write(1_000.0, 5.0, "Pong", 100, FIGURES)
    writer.close()
    writer.close()
