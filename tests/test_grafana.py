"""Dashboards ask for what runs export, and Grafana can place what they show."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard
from live_run import command
from prometheus_server import program

from rl_cluster.telemetry.grafana import DATASOURCE, DIRECTORY, panels, render
from rl_cluster.telemetry.metrics import METRICS, metric_named
from rl_cluster.telemetry.prometheus import addresses_file, exported, write_addresses

BOARDS = {name: json.loads(text) for name, text in render().items()}


def charts() -> list[dict[str, Any]]:
    return [p for board in BOARDS.values() for p in board["panels"] if p["type"] != "row"]


def test_the_files_are_what_the_generator_makes() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in DIRECTORY.iterdir()}
    assert kept == render(), "run: python -m rl_cluster.telemetry.grafana"


def unlike(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Where what was written is not what came back; what came back may have defaults beside it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from unlike(value, theirs.get(key), f"{place}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from unlike(one, other, f"{place}/{number}")
    elif ours != theirs:
        yield place


def lost(board: dict[str, Any]) -> list[str]:
    """What Grafana's own model of a dashboard does not take."""
    taken = json.loads(JSONEncoder().encode(dashboard.Dashboard.from_json(copy.deepcopy(board))))
    return list(unlike(board, taken))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_grafanas_model_of_a_dashboard_takes_all_of_it(board: dict[str, Any]) -> None:
    register_default_plugins()
    assert lost(board) == []
    changed = copy.deepcopy(board)
    changed["refreshed"] = "10s"
    changed["panels"][1]["titel"] = "a chart"
    changed["panels"][1]["targets"][0]["exprr"] = "up"
    assert lost(changed) == ["/panels/1/targets/0/exprr", "/panels/1/titel", "/refreshed"]


def test_every_metric_stands_in_one_panel_and_on_one_dashboard() -> None:
    placed = [metric.name for panel in panels() for metric in panel.metrics]
    assert sorted(placed) == sorted(METRICS)
    asked = [target["expr"] for chart in charts() for target in chart["targets"]]
    assert len(asked) == len(set(asked)) == len(METRICS)


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: panel.title)
def test_metrics_of_one_panel_have_one_scale(panel: Any) -> None:
    units = [exported(metric).name.rpartition("_")[2] for metric in panel.metrics]
    assert len({unit if unit in ("seconds", "ratio", "bytes") else "" for unit in units}) == 1
    assert len({metric.scope for metric in panel.metrics}) == 1
    for metric in panel.metrics:
        assert metric.meaning in panel.description and metric.how_to_read in panel.description


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_do_not_overlap_and_fit_grafanas_24_columns(board: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        assert x + w <= 24
        own = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & own, panel["title"]
        cells |= own
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("env_steps", "ray_rl_cluster_env_steps_total"),
        ("wall_s", "ray_rl_cluster_wall_seconds_total"),
        ("env_frames_per_s", "ray_rl_cluster_env_frames_per_second"),
        ("learner_wait_share", "ray_rl_cluster_learner_wait_ratio"),
        ("replay_fill", "ray_rl_cluster_replay_fill_ratio"),
        ("publish_ms", "ray_rl_cluster_publish_seconds"),
        ("policy_lag_p95", "ray_rl_cluster_policy_lag_p95_versions"),
        ("replay_bytes", "ray_rl_cluster_replay_bytes"),
    ],
)
def test_names_have_base_units_and_counters_a_total(ours: str, theirs: str) -> None:
    assert exported(metric_named(ours)).name == theirs


def test_milliseconds_become_seconds() -> None:
    assert exported(metric_named("publish_ms")).scale == 1e-3
    assert exported(metric_named("checkpoint_s")).scale == 1


def test_no_two_metrics_share_a_name() -> None:
    assert len({exported(metric).name for metric in METRICS.values()}) == len(METRICS)


@pytest.fixture
def provisioned(tmp_path: Path) -> tuple[Path, list[str]]:
    """Where configuration was written to, and the commands that were printed."""
    run = tmp_path / "my run"
    (run / "control").mkdir(parents=True)
    (run / "config.yaml").touch()
    write_addresses(run, ["127.0.0.1:4711"])
    done = command("dashboards", run, "--out", tmp_path / "out dir")
    assert done.returncode == 0, done.stderr
    return tmp_path / "out dir", done.stdout.splitlines()


def test_prometheus_finds_its_configuration_right(provisioned: tuple[Path, list[str]]) -> None:
    directory, _ = provisioned
    checked = subprocess.run(
        [program("promtool"), "check", "config", directory / "prometheus.yml"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    content = yaml.safe_load((directory / "prometheus.yml").read_text())
    (scrape,) = content["scrape_configs"]
    (addresses,) = scrape["file_sd_configs"][0]["files"]
    assert Path(addresses) == addresses_file(directory.parent / "my run")
    assert json.loads(Path(addresses).read_text()) == [{"targets": ["127.0.0.1:4711"]}]


def test_grafana_is_told_of_prometheus_and_the_dashboards(
    provisioned: tuple[Path, list[str]],
) -> None:
    directory, (prometheus, grafana) = provisioned
    provisioning = directory / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "rl-cluster.yaml").read_text())[
        "datasources"
    ]
    assert source["uid"] == DATASOURCE
    address = source["url"].removeprefix("http://")
    assert f"--web.listen-address={address}" in shlex.split(prometheus)
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "rl-cluster.yaml").read_text())[
        "providers"
    ]
    boards = Path(provider["options"]["path"])
    assert {path.name for path in boards.iterdir()} == set(BOARDS)
    assert f"GF_PATHS_PROVISIONING={provisioning}" in shlex.split(grafana)


def test_nothing_listens_beyond_loopback(provisioned: tuple[Path, list[str]]) -> None:
    _, (prometheus, grafana) = provisioned
    assert "--web.listen-address=127.0.0.1:9090" in shlex.split(prometheus)
    assert "GF_SERVER_HTTP_ADDR=127.0.0.1" in shlex.split(grafana)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    refused = command("dashboards", tmp_path / "none")
    assert refused.returncode == 1
    assert "holds no run" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_run_that_has_ended_has_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    write_addresses(tmp_path, [])
    assert json.loads(addresses_file(tmp_path).read_text()) == []
