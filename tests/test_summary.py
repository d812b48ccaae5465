import json
import math

import pytest
from telemetry_samples import NOW_S, fresh_task_summary, run_summary, task_summary

from rl_cluster.telemetry.incidents import Incident, IncidentLog, read_incidents
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.summary import (
    SummaryError,
    check_valid,
    is_stale,
    read_summary,
    task_metrics,
    write_summary,
)


def incident(**changes):
    fields = {
        "time": NOW_S,
        "task": "Pong",
        "worker": "rollout-0",
        "kind": "died",
        "cause": "signal 9",
        "action": "restarted",
        "detail": "after 2 s",
    }
    return Incident(**{**fields, **changes})


def test_summary_is_read_back_as_written(tmp_path):
    write_summary(tmp_path, run_summary())
    assert read_summary(tmp_path) == run_summary()


def test_file_has_every_key_that_scripts_depend_on(tmp_path):
    write_summary(tmp_path, run_summary())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"run", "state", "wall_s", "tier", "incidents", "tasks"} <= set(summary)
    task = summary["tasks"]["Pong"]
    assert set(summary["tier"]) == {"requested", "effective"}
    assert {
        "state", "env_steps", "env_frames", "env_frames_per_s", "learner_updates",
        "learner_samples_per_s", "samples_per_insert", "policy_version", "policy_lag", "replay",
        "evaluation", "best", "restarts", "skipped_batches",
    } <= set(task)  # fmt: skip
    assert set(task["samples_per_insert"]) == {"wanted", "actual"}
    assert set(task["policy_lag"]) == {"p50", "p95"}
    assert {"transitions", "bytes", "capacity"} <= set(task["replay"])
    assert {"episodes", "mean_return", "random_mean_return", "human_normalized"} <= set(
        task["evaluation"]
    )
    assert set(task["best"]) == {"mean_return", "step"}


def test_missing_key_is_named_and_the_old_file_stays(tmp_path):
    write_summary(tmp_path, run_summary())
    task = dict(task_summary())
    del task["restarts"]
    with pytest.raises(SummaryError, match=r"tasks\.Pong\.restarts: Field required"):
        write_summary(tmp_path, run_summary(tasks={"Pong": task}))
    assert read_summary(tmp_path) == run_summary()
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"state": "done"}, "state"),
        ({"incidents": "2"}, "incidents"),
        ({"tasks": {"Pong": task_summary(state="asleep")}}, r"tasks\.Pong\.state"),
        ({"tasks": {"Pong": task_summary(env_frames_per_s=math.nan)}}, "env_frames_per_s"),
    ],
)
def test_wrong_value_is_named(changes, place):
    with pytest.raises(SummaryError, match=place):
        check_valid(run_summary(**changes))


def test_key_of_a_newer_version_is_let_pass():
    check_valid({**run_summary(), "population": 16})


def test_loss_that_is_not_finite_becomes_null(tmp_path):
    write_summary(tmp_path, run_summary(tasks={"Pong": task_summary(loss=math.inf)}))
    assert read_summary(tmp_path)["tasks"]["Pong"]["loss"] is None


def test_run_without_a_summary_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run directory, or its run has not started"):
        read_summary(tmp_path)


def test_damaged_summary_is_named(tmp_path):
    (tmp_path / "summary.json").write_text('{"run": ')
    with pytest.raises(SummaryError, match=r"summary\.json is not JSON"):
        read_summary(tmp_path)


def test_only_a_running_summary_that_was_not_renewed_is_stale():
    assert not is_stale(run_summary(), NOW_S + 59)
    assert is_stale(run_summary(), NOW_S + 61)
    assert not is_stale(run_summary(state="completed"), NOW_S + 1e6)


def test_figures_of_a_task_are_in_the_table_of_metrics():
    for task in (task_summary(), fresh_task_summary()):
        figures = task_metrics(task)
        assert {METRICS[name].scope for name in figures} == {"task"}
    assert task_metrics(task_summary())["evaluation_mean_return"] == -17.2
    assert task_metrics(fresh_task_summary())["evaluation_mean_return"] is None


def test_incidents_are_on_disk_and_counted_over_sessions(tmp_path):
    first = IncidentLog(tmp_path)
    first.append(incident())
    first.append(incident(task=None, worker=None, kind="host_reboot"))
    assert len(read_incidents(tmp_path)) == first.count == 2
    first.close()
    second = IncidentLog(tmp_path)
    assert second.count == 2
    second.append(incident(worker="rollout-1"))
    second.close()
    assert [item.worker for item in read_incidents(tmp_path)] == ["rollout-0", None, "rollout-1"]


def test_incidents_survive_a_torn_last_line(tmp_path):
    log = IncidentLog(tmp_path)
    log.append(incident())
    log.close()
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"time": 1800000')
    assert read_incidents(tmp_path) == [incident()]
    resumed = IncidentLog(tmp_path)
    resumed.append(incident(worker="learner-0"))
    resumed.close()
    assert [item.worker for item in read_incidents(tmp_path)] == ["rollout-0", "learner-0"]


def test_a_damaged_line_stops_readers_and_not_who_writes(tmp_path):
    log = IncidentLog(tmp_path)
    log.append(incident())
    log.close()
    with (tmp_path / "incidents.jsonl").open("ab") as file:
        file.write(b'{"time": 3, "task\x00\n')
    again = IncidentLog(tmp_path)
    again.append(incident(kind="hung"))
    assert again.count == 3
    again.close()
    with pytest.raises(ValueError, match=r"incidents\.jsonl, line 2"):
        read_incidents(tmp_path)


def test_incident_lines_have_the_documented_keys(tmp_path):
    log = IncidentLog(tmp_path)
    log.append(incident())
    log.close()
    line = json.loads((tmp_path / "incidents.jsonl").read_text())
    assert list(line) == ["time", "task", "worker", "kind", "cause", "action", "detail"]


def test_incident_without_a_cause_is_refused(tmp_path):
    log = IncidentLog(tmp_path)
    with pytest.raises(ValueError, match="incident without cause"):
        log.append(incident(cause=""))
    log.close()
    assert read_incidents(tmp_path) == []
