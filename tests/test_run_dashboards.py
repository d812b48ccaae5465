"""A live run of a fleet beside a game, scraped by a real Prometheus: panels have their figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from live_run import ROOT, LiveRun, command, lines
from prometheus_server import PrometheusServer, program
from test_run_rovers import CONFIG

from rl_cluster.cluster.runtime import processes_of
from rl_cluster.run_directory import read_cluster
from rl_cluster.telemetry.grafana import DIRECTORY
from rl_cluster.telemetry.metrics import METRICS
from rl_cluster.telemetry.prometheus import addresses_file, exported

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "dashboards.md"
RUN, TASKS = "observed", ("rovers", "Catch")
NOT_HERE = {"evaluation_human_normalized"}
"""Atari alone has a human's scores."""
WORKERS = (
    "courier:rovers", "evaluator:Catch", "field:rovers", "learner:Catch", "learner:rovers",
    "reader:rovers", "replay:Catch", "replay:rovers", "rollout:Catch/0", "supervisor", "weights",
)  # fmt: skip


class Observed(NamedTuple):
    """A run and who watches it."""

    run: LiveRun
    prometheus: PrometheusServer


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    program("prometheus")
    tmp = tmp_path_factory.mktemp("dashboards")
    (tmp / "config.yaml").write_text(CONFIG)
    settings = (
        f"tasks.Catch.checkpoint.upload=file://{tmp / 'uploaded'}",
        "tasks.Catch.evaluation.period_s=5",
        "cluster.dashboard=true",
    )
    with LiveRun(tmp / "config.yaml", tmp / RUN, *settings) as run:
        run.wait_for(lambda s: all(t["policy_version"] > 0 for t in s["tasks"].values()), 120)
        configured = command("dashboards", run.run_dir)
        assert configured.returncode == 0, configured.stderr
        with PrometheusServer(configured.stdout.splitlines()[0]) as prometheus:
            prometheus.until_ready(30)
            run.wait_for(lambda _: _written(run) >= METRICS.keys() - NOT_HERE, 120)
            yield Observed(run, prometheus)
        assert run.interrupt() == 130, run.log()
        assert json.loads(addresses_file(run.run_dir).read_text()) == []


def _written(run: LiveRun) -> set[str]:
    """Metrics that some row of the run's file has a value for."""
    rows = lines(run.run_dir / "metrics.jsonl")
    return {name for row in rows for name, value in row.items() if value is not None}


def _expressions() -> list[tuple[str, str]]:
    """Title of a panel and what it asks for, as Grafana fills it in."""
    asked = []
    for path in sorted(DIRECTORY.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                filled = target["expr"].replace("$run", RUN).replace("$task", "|".join(TASKS))
                asked.append((panel["title"], filled))
    return asked


def _until(found: Any, timeout_s: float) -> Any:
    """What a question is answered with, once that is something."""
    deadline_s = time.monotonic() + timeout_s
    while not (answer := found()) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    return answer


def test_every_panel_has_its_figures(observed: Observed) -> None:
    absent = {exported(METRICS[name]).name for name in NOT_HERE}
    asked = [one for one in _expressions() if not any(name in one[1] for name in absent)]
    assert len(asked) == len(METRICS) - len(NOT_HERE)

    def all_there() -> bool:
        return all(observed.prometheus.values(expression) for _, expression in asked)

    _until(all_there, 60)  # Ray hands on what was set once in ten seconds
    empty = [title for title, expression in asked if not observed.prometheus.values(expression)]
    assert empty == []


def test_the_choices_above_the_panels_are_the_run_and_its_tasks(observed: Observed) -> None:
    name = exported(METRICS["env_steps"]).name
    prometheus = observed.prometheus
    assert _until(lambda: prometheus.ask("label/run/values", **{"match[]": name}), 60) == [RUN]
    assert set(prometheus.ask("label/task/values", **{"match[]": name})) == set(TASKS)


def test_figures_are_those_of_the_run(observed: Observed) -> None:
    run, prometheus = observed
    for task in TASKS:
        asked = f'{exported(METRICS["env_steps"]).name}{{run="{RUN}",task="{task}"}}'
        before = run.summary()["tasks"][task]["env_steps"]
        found = _until(lambda a=asked, b=before: _above(prometheus, a, b), 60)
        assert found, f"{task} stands at {before} steps, Prometheus has {prometheus.values(asked)}"
        assert found[0][1] <= run.summary()["tasks"][task]["env_steps"]


def _above(prometheus: PrometheusServer, asked: str, least: float) -> list[Any]:
    return [found for found in prometheus.values(asked) if found[1] >= least]


def test_counters_are_counters_and_carry_their_meaning(observed: Observed) -> None:
    for name in ("env_steps", "replay_bytes"):
        metric = METRICS[name]
        family = exported(metric).name.removesuffix("_total")  # OpenMetrics' name of a counter
        ((told,),) = observed.prometheus.ask("metadata", metric=family).values()
        assert told["type"] == metric.kind
        assert told["help"] == metric.description


def _as_documented(run: LiveRun) -> list[str]:
    """What the page's program prints, of this run."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert "runs/watched" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("runs/watched", str(run.run_dir))],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_actor_says_what_it_does_now(observed: Observed) -> None:
    version = observed.run.summary()["tasks"]["Catch"]["policy_version"]
    _, *said = _as_documented(observed.run)
    assert [line[1:].partition(": ")[0] for line in said] == list(WORKERS)
    line = next(line for line in said if line.startswith("<learner:Catch: working"))
    assert int(re.findall(r"policy (\d+), [\d.]+ updates/s; life 1, \d+ s old", line)[0]) >= version


def test_the_dashboard_lists_the_actors_by_name_to_who_has_the_token(observed: Observed) -> None:
    url = _as_documented(observed.run)[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/logical/actors", timeout=30)
    told = subprocess.run(
        [Path(sys.executable).parent / "ray", "get-auth-token"], capture_output=True, text=True
    )
    asked = urllib.request.Request(
        f"{url}/logical/actors", headers={"Authorization": f"Bearer {told.stdout.strip()}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as reply:
        actors = json.load(reply)["data"]["actors"].values()
    alive = {actor["name"]: actor["reprName"] for actor in actors if actor["state"] == "ALIVE"}
    assert sorted(alive) == list(WORKERS)
    for name, first in alive.items():
        assert first.startswith(f"<{name}: "), first


def test_nothing_listens_beyond_loopback(observed: Observed) -> None:
    cluster = read_cluster(observed.run.run_dir)
    own = {process.pid for process in processes_of(observed.run.run_dir, cluster)}
    found = [c for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in own]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in found} == {"127.0.0.1"}
