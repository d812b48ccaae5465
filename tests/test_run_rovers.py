"""One live run of a fleet beside a game: the whole loop, everything killed once, and resumed.

Another rover joins by hand, and another program listens with nothing but nats-py, msgpack and the
protocol's document.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import nats
import numpy as np
import psutil
import pytest
from chaos.figures import record_figure
from live_run import LiveRun, lines
from rover_runs import finish, spawn
from test_run_levers import levers, newest, pull

from rl_cluster.control import Control
from rl_cluster.fleet_settings import address_file
from rl_cluster.telemetry.summary import check_valid

CONFIG = """
max_seconds: 3600
telemetry: {period_s: 1, tensorboard: false}
tasks:
  rovers:
    env: {entry: "envs.rover:make", name: rover}
    stream:
      source: nats
      simulated_rovers: 2
      simulated_hz: 60
      policy_period_s: 3
      judged_in: simulator
      gate_margin: 1000  # every policy is sent
      silence_s: 5
      ack_wait_s: 5
    rollout: {block_length: 64, blocks_per_collect: 4}
    replay:
      capacity_transitions: 5_000
      min_transitions: 200
      samples_per_insert: 4
      priority_exponent: 0
      importance_exponent: 1
      disk_reserve_bytes: 0
    sac:
      {core: feed_forward, burn_in: 0, unroll: 1, conv_channels: [4, 8], features: 16, hidden: 32}
    learner: {batch: 16, publish_period: 5, precision: float32}
    checkpoint: {period_s: 3}
    evaluation: {games: 2, period_s: 5}
  Catch:
    env: {entry: "envs.catch:make"}
    rollout: {environments: 8, inference_batch: 8}
    replay: {capacity_transitions: 4_000, min_transitions: 500, samples_per_insert: 2}
    agent: {frame_stack: 2, n_step: 3, conv_channels: [8, 16], hidden: 32}
    learner: {batch: 32}
    checkpoint: {period_s: 3}
    evaluation: {games: 5, period_s: 30, video: false}
"""
FLEET = "rovers"
SUBJECTS = ("models.sac.update", "models.sac.metadata", "server.sac.status")
WORKERS = ("ReaderActor", "CourierActor", "FieldActor", "LearnerActor")


class Listener:
    """What the training side says, as any program hears it; a context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.policies: dict[int, bytes] = {}
        self.announced: list[int] = []
        self.early: list[int] = []
        """Versions that were announced before their policy came."""
        self.status: list[tuple[float, dict[str, Any]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        client = await nats.connect(
            self._url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
        )
        for subject in SUBJECTS:
            await client.subscribe(subject, cb=self._hear)
        while not self._stop.is_set():
            await asyncio.sleep(0.1)
        await client.close()

    async def _hear(self, message: Any) -> None:
        said = msgpack.unpackb(message.data)
        if message.subject == SUBJECTS[0]:
            self.policies[said["version"]] = said["onnx_bytes"]
        elif message.subject == SUBJECTS[1]:
            version = said["latest_version"]
            if version not in self.policies:
                self.early.append(version)
            self.announced.append(version)
        else:
            self.status.append((time.monotonic(), said))


async def _ignore(_: Exception) -> None:
    """The server dies in this test."""


def url_of(run: LiveRun) -> str:
    return str((Control(run.run_dir).read(address_file(FLEET)) or {})["url"])


def fleet(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = summary["tasks"][FLEET]
    return found


def stream(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fleet(summary)["stream"]
    return found


def on_rovers(summary: dict[str, Any], rovers: Sequence[str] = ("sim-0", "sim-1")) -> int:
    """The oldest policy that one of these rovers drives with; -1: none yet."""
    known = stream(summary)["rovers"]
    return min(known.get(name, {"policy_version": -1})["policy_version"] for name in rovers)


def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


def incidents(run: LiveRun, kind: str) -> list[dict[str, Any]]:
    path = run.run_dir / "incidents.jsonl"
    return [i for i in (lines(path) if path.exists() else []) if i["kind"] == kind]


def await_training(run: LiveRun, *tasks: str) -> None:
    """Wait until the tasks have taken in and learned from more than now."""
    before = run.summary()["tasks"]
    run.wait_for(
        lambda s: all(
            s["tasks"][task][name] > before[task][name] + 10
            for task in tasks
            for name in ("env_steps", "learner_updates")
        ),
        120,
    )


def both_tasks_train_and_policies_reach_the_rovers(run: LiveRun, heard: Listener) -> None:
    first = on_rovers(run.wait_for(lambda s: on_rovers(s) >= 1, 120))
    run.wait_for(lambda s: on_rovers(s) > first, 60)
    await_training(run, FLEET, "Catch")
    check_valid(run.summary())
    until(lambda: len(heard.status) >= 8, "the status of the training side")
    gaps_s = np.diff([at_s for at_s, _ in heard.status])
    record_figure("rovers", "gap between two messages of status", float(np.median(gaps_s)), "s")
    said = heard.status[-1][1]
    assert said["status"] == "training" and 0 < said["model_version"] <= max(heard.policies)
    assert said["buffer_size"] > 200 and said["total_steps"] > 200


def a_late_rover_takes_the_present_policy(run: LiveRun, joined: str = "late") -> None:
    sent = stream(run.summary())["sent_version"]
    with spawn(url_of(run), "--rover-id", joined, "--hz", "60") as process:
        run.wait_for(lambda s: joined in stream(s)["rovers"], 60)
        run.wait_for(lambda s: on_rovers(s, [joined]) >= sent, 60)
        counts, _ = finish(process)
    assert counts["acknowledged"] == counts["batches"] > 0


def a_person_goes_back(run: LiveRun, heard: Listener) -> None:
    """To the policy before, and to an older one by its version."""
    until(lambda: len(heard.announced) >= 3, "three policies")
    before, oldest = max(heard.announced), sorted(heard.policies)[-3]
    answers = levers(run, ("rollback", FLEET), ("rollback", FLEET, str(oldest)))
    assert [code for code, _ in answers] == [0, 0], answers
    one, other = (int(said.split()[-1]) for _, said in answers)
    assert before < one < other
    until(lambda: other in heard.announced, "the policies that were gone back to")
    assert heard.policies[one] in [heard.policies[v] for v in heard.policies if v < one]
    assert heard.policies[other] == heard.policies[oldest]
    run.wait_for(lambda s: on_rovers(s) >= other, 60)


def what_is_killed_comes_back(run: LiveRun, heard: Listener) -> None:
    """Reader, courier, field and learner at once; the field's server and rovers with it."""
    before, told = run.summary(), max(heard.announced)
    for process in [each for worker in WORKERS for each in run.processes(worker)]:
        process.kill()
    run.wait_for(lambda s: fleet(s)["restarts"] >= fleet(before)["restarts"] + len(WORKERS), 60)
    await_training(run, FLEET, "Catch")
    until(lambda: max(heard.announced) > told, "a later version")
    run.wait_for(lambda s: on_rovers(s) > told, 60)
    assert len(rovers_of(run)) == 2 and len(run.processes("nats-server")) == 1
    assert fleet(run.summary())["env_steps"] > fleet(before)["env_steps"]


def rovers_of(run: LiveRun) -> list[psutil.Process]:
    return run.processes("envs.rover.process")


def levers_move_a_fleet_as_a_game(run: LiveRun) -> None:
    pull(run, "set", "--task", FLEET, "learner.learning_rate=1e-4", "stream.policy_period_s=4")
    run.wait_for(lambda _: newest(run, FLEET, "learning_rate") == pytest.approx(1e-4), 60)
    pull(run, "pause")
    states = {FLEET: "paused", "Catch": "paused"}
    run.wait_for(lambda s: {t: v["state"] for t, v in s["tasks"].items()} == states, 60)
    steps = fleet(run.summary())["env_steps"]
    run.wait_for(lambda s: fleet(s)["env_steps"] > steps, 60)  # rovers are not held back
    pull(run, "resume")
    await_training(run, FLEET, "Catch")


def a_silent_fleet_is_waited_for(run: LiveRun) -> None:
    told = len(incidents(run, "stream_silent"))
    silenced = rovers_of(run)
    for process in silenced:
        os.kill(process.pid, signal.SIGSTOP)
    until(lambda: len(incidents(run, "stream_silent")) > told, "an incident of the silence")
    resting = run.wait_for(lambda s: fleet(s)["state"] == "waiting", 60)
    ratio = fleet(resting)["samples_per_insert"]
    assert ratio["actual"] <= ratio["wanted"] * 1.15
    time.sleep(3)  # what was under way is counted
    rested = fleet(run.summary())["learner_updates"]
    time.sleep(3)
    assert fleet(run.summary())["learner_updates"] == rested
    for process in silenced:
        os.kill(process.pid, signal.SIGCONT)
    until(lambda: incidents(run, "stream_again"), "the end of the silence")
    await_training(run, FLEET)


def counters(run: LiveRun) -> dict[str, list[int]]:
    rows = [row for row in lines(run.run_dir / "metrics.jsonl") if row["task"] == FLEET]
    names = ("env_steps", "policy_version", "sent_version")
    return {name: [row[name] for row in rows if row[name] is not None] for name in names}


@contextmanager
def fleet_beside_a_game(tmp_path: Path) -> Iterator[tuple[LiveRun, Listener]]:
    """A run whose rovers drive with a policy of their own already, and what is heard of it."""
    config, run_dir = tmp_path / "rovers.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    with LiveRun(config, run_dir) as run:
        until(lambda: (run_dir / "control" / "server-rovers.json").exists(), "a server", 120)
        with Listener(url_of(run)) as heard:
            both_tasks_train_and_policies_reach_the_rovers(run, heard)
            yield run, heard


@pytest.mark.long
@pytest.mark.timeout(600)
def test_rovers_come_late_fall_silent_and_are_sent_earlier_policies(tmp_path: Path) -> None:
    with fleet_beside_a_game(tmp_path) as (run, heard):
        a_late_rover_takes_the_present_policy(run)
        a_person_goes_back(run, heard)
        a_silent_fleet_is_waited_for(run)
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()


@pytest.mark.timeout(600)
def test_a_fleet_beside_a_game_outlives_the_death_of_all_that_serves_it(tmp_path: Path) -> None:
    with fleet_beside_a_game(tmp_path) as (run, heard):
        what_is_killed_comes_back(run, heard)
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
        check_order(run, heard)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_levers_move_a_fleet_and_it_is_resumed_where_it_was_stopped(tmp_path: Path) -> None:
    config, run_dir = tmp_path / "rovers.yaml", tmp_path / "run"
    with fleet_beside_a_game(tmp_path) as (run, heard):
        levers_move_a_fleet_as_a_game(run)
        pull(run, "stop")
        assert run.finish(60) == 130, run.log()
        run.check_nothing_left()
        left, url = run.summary(), url_of(run)
        assert url in run.log()
    with LiveRun(config, run_dir, resume=True) as run:
        run.wait_for(lambda s: s["state"] == "running", 60)
        run.wait_for(lambda s: on_rovers(s) > max(heard.announced), 120)
        await_training(run, FLEET, "Catch")
        assert url_of(run) == url, "rovers that joined find it again"
        until(lambda: incidents(run, "restored"), "a replay that is restored")
        for name in ("env_steps", "learner_updates", "policy_version"):
            assert fleet(run.summary())[name] > fleet(left)[name]
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
        check_order(run, heard)


def check_order(run: LiveRun, heard: Listener) -> None:
    """Nothing went back, nothing was announced before it came, nothing was given up."""
    assert heard.early == [] and heard.announced == sorted(set(heard.announced))
    for name, values in counters(run).items():
        assert values == sorted(values), name
    assert not [k for k in ("task_parked", "not_saved", "worker_parked") if incidents(run, k)]
