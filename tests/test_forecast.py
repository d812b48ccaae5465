"""Forecasts: from measured rates to hours and money, by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from live_run import EXPERIMENTS, command
from telemetry_samples import NOW_S, run_summary, task_summary

from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.forecast import (
    ForecastError,
    Rate,
    as_trial,
    assumptions,
    foretell,
    read_rates,
)
from rl_cluster.telemetry.summary import failures_of, task_metrics
from rl_cluster.telemetry.writers import open_writer

RATES = {"Pong": Rate(100.0, 4.0), "Boxing": Rate(50.0, 4.0)}


def configured(*tasks: str, **settings: object) -> RunConfig:
    return from_mapping({"tasks": list(tasks), **settings})


def write_rows(run_dir: Path, rows: list[tuple[float, str, int, int]]) -> None:
    """(seconds, task, env_steps, updates) of each row of a run's metrics."""
    writer = open_writer(run_dir)
    for time_s, task, steps, updates in rows:
        figures = task_metrics(task_summary()) | {
            "env_steps": steps, "env_frames": 4 * steps, "learner_updates": updates}  # fmt: skip
        writer.write(NOW_S + time_s, time_s, task, steps, figures)
    writer.write(NOW_S + time_s, time_s, None, None, {"incidents": 0})
    writer.close()


def test_a_rate_is_measured_from_when_learning_began(tmp_path: Path) -> None:
    rows = [(1.0, "Pong", 0, 0), (9.0, "Pong", 8000, 0), (10.0, "Pong", 8100, 10),
            (20.0, "Pong", 9100, 1000), (20.0, "Boxing", 50, 0)]  # fmt: skip
    write_rows(tmp_path, rows)
    assert read_rates(tmp_path, 0.0) == {"Pong": Rate(100.0, 4.0)}


def test_what_a_game_did_alone_is_no_part_of_its_rate_beside_another(tmp_path: Path) -> None:
    rows = [(1.0, "Pong", 1000, 10), (10.0, "Pong", 10_000, 90), (11.0, "Boxing", 50, 1),
            (11.0, "Pong", 10_400, 95), (21.0, "Boxing", 2050, 20),
            (21.0, "Pong", 14_400, 200)]  # fmt: skip
    write_rows(tmp_path, rows)
    rates = read_rates(tmp_path, NOW_S + 10.5)
    assert {task: rate.env_steps_per_s for task, rate in rates.items()} == {
        "Pong": 400.0, "Boxing": 200.0
    }  # fmt: skip


def test_a_run_that_never_learned_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path, [(1.0, "Pong", 0, 0), (9.0, "Pong", 800, 0)])
    with pytest.raises(ForecastError, match="--seconds"):
        read_rates(tmp_path, None)


def test_a_run_with_a_task_that_failed_says_why(tmp_path: Path) -> None:
    write_rows(tmp_path, [(1.0, "Boxing", 0, 10), (9.0, "Boxing", 800, 100)])
    failed = run_summary(
        tasks={"Pong": task_summary(failure="no such game"), "Boxing": task_summary()}
    )
    with pytest.raises(ForecastError, match=r"\(Pong: no such game\)") as told:
        read_rates(tmp_path, 0.0, failures_of(failed))
    assert "min_transitions" not in str(told.value)


def test_a_task_that_took_no_steps_while_it_was_measured_is_no_task_without_a_turn(
    tmp_path: Path,
) -> None:
    """Else its hours would be the other's, and its share of the price too."""
    write_rows(tmp_path, [(1.0, "Pong", 100, 1), (1.0, "Rover", 100, 1), (9.0, "Pong", 200, 9),
                          (9.0, "Rover", 100, 9)])  # fmt: skip
    with pytest.raises(ForecastError, match="Rover learned, and took no env steps"):
        read_rates(tmp_path, 0.0)


def test_a_task_that_has_only_just_begun_counts_as_without_a_turn(tmp_path: Path) -> None:
    write_rows(tmp_path, [(1.0, "Pong", 100, 1), (9.0, "Pong", 900, 9), (9.0, "Boxing", 50, 1)])
    assert list(read_rates(tmp_path, 0.0)) == ["Pong"]


def test_games_at_once_end_with_the_slowest_and_share_the_price() -> None:
    config = configured("Pong", "Boxing", max_env_steps=360_000)
    tier = foretell(config, "custom", RATES, None, hourly=3.0)
    assert [(game.task, game.hours, game.cost) for game in tier.games] == [
        ("Pong", 1.0, 1.5),
        ("Boxing", 2.0, 3.0),
    ]
    assert (tier.hours, tier.cost) == (2.0, 6.0)
    assert all(game.measured for game in tier.games)


def test_games_that_wait_for_their_turn_are_added_up_at_the_mean_rate() -> None:
    config = configured("Pong", "Boxing", "Qbert", "Enduro", max_env_steps=270_000)
    tier = foretell(config, "light", RATES, None, hourly=None)
    assert [(g.task, g.hours, g.measured) for g in tier.games] == [
        ("Pong", 0.75, True),
        ("Boxing", 1.5, True),
        ("Qbert", 1.0, False),
        ("Enduro", 1.0, False),
    ]
    assert tier.games_at_once == 2 and tier.hours == pytest.approx(4.25 / 2)
    assert tier.cost is None and tier.games[0].cost is None
    assert any("without a turn" in note for note in assumptions(config, [tier], None, None))


def test_frames_go_before_the_configuration_s_steps() -> None:
    tier = foretell(configured("Pong", max_env_steps=1), "custom", {"Pong": RATES["Pong"]}, 2e8, 1)
    assert tier.games[0].env_steps == 50_000_000
    assert tier.hours == pytest.approx(50_000_000 / 100 / 3600)


def test_where_nothing_says_how_far_it_is_as_far_as_papers_go_and_that_is_said() -> None:
    rate = {"Pong": RATES["Pong"]}
    endless, ends = configured("Pong"), configured("Pong", max_env_steps=1)
    assert foretell(endless, "custom", rate, None, None).games[0].env_steps == 50_000_000
    assert foretell(ends, "custom", rate, None, None).games[0].env_steps == 1
    said = {
        (config.max_env_steps, frames): any(
            "200,000,000" in note for note in assumptions(config, [], frames, None)
        )
        for config in (endless, ends)
        for frames in (None, 1e6)
    }
    assert said == {(None, None): True, (None, 1e6): False, (1, None): False, (1, 1e6): False}


def test_a_trial_ends_and_nobody_outside_hears_of_it() -> None:
    upload = {"checkpoint": {"upload": "s3://bucket/runs"}}
    config = configured(
        "Pong", max_env_steps=5, telemetry={"wandb": True}, defaults=upload, load={"slice_s": 5}
    )
    trial = as_trial(config, "light", 60.0)
    assert (trial.max_seconds, trial.max_env_steps, trial.load.tier) == (660.0, None, "light")
    assert not trial.telemetry.wandb and trial.tasks["Pong"].checkpoint.upload is None
    assert trial.load.slice_s >= 660.0
    assert trial.tasks["Pong"].learner == config.tasks["Pong"].learner
    with pytest.raises(ConfigError, match="load.tier is 'huge'"):
        as_trial(config, "huge", 60.0)


def test_a_trial_of_real_rovers_is_refused_and_says_how_to_do_without_them() -> None:
    url = "nats://127.0.0.1:4222"
    fleet = {"env": {"entry": "envs.rover:make"}, "stream": {"source": "nats", "url": url}}
    raw = {"tasks": {"field": fleet}}
    config = from_mapping(raw)
    with pytest.raises(ConfigError, match=rf"a trial of field .*{url}.*--set tasks.field") as told:
        as_trial(config, "custom", 60.0)
    settings = re.findall(r"tasks\.\S+=\S+", str(told.value))
    as_trial(from_mapping(raw, settings), "custom", 60.0)


def test_what_was_given_up_while_it_was_measured_is_said() -> None:
    notes = assumptions(configured("Pong"), [], None, None, ["heavy: memory is short"])
    assert "what was given up meanwhile stays given up: heavy: memory is short" in notes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env-frames", "0"], "0 is not above 0"),
        (["--hourly", "-1", "--env-frames", "9"], "-1 is not above 0"),
        (["--env-frames", "9", "--tiers", "huge"], "load.tier is 'huge'"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(arguments: list[str], said: str) -> None:
    done = command("forecast", EXPERIMENTS / "catch.yaml", *arguments)
    assert done.returncode == 2 and said in done.stderr
