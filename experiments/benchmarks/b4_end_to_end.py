"""B4: environment steps a second while learning, beside whole programs; B6: lag and age meanwhile.

All play Pong and learn plain DQN (one step, neither double nor dueling, uniform replay) with the
same network, batches of 32 and the same samples per environment step, each program as a person
would start it. The limit is cores / (CPU seconds of environment + inference + update per step).
Invariant: only one program runs at a time, and what it learned in its turn was counted beside what
it played; the targets of our updates were compared with plain ones before.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peers import OURS, python_of
from plan import Plan
from results import MEASURES, Row, compare, interval, missing, pairs
from sides import HERE, ROOT, BenchmarkError, ServedSide, Window, run_once
from training_side import Program, TrainingSide

from rl_cluster.config import TaskConfig
from rl_cluster.config_file import load
from rl_cluster.telemetry.jsonl import read_lines

ROW = "B4 end to end"
UNIT = "env steps"
CONFIG = ROOT / "experiments" / "pong_benchmark.yaml"
OUR_PACKAGES = ("rl-cluster", "ray", "torch", "envpool", "numpy")
OUR_SETTLE_S = 2.0
"""The figures of a row of ours are a second old."""
OUR_REST_S = 0.3
"""The supervisor's questions of a second are answered soon after its row is written."""
TARGETS_DIFFER = 0.02
"""Three significant digits of bfloat16, for values of the size of a reward."""
VERSIONS_TIMEOUT_S = 60.0

Network = Literal["nature", "tiny"]
LABELS: Mapping[Network, str] = {
    "nature": "Nature network",
    "tiny": "tiny network (16, 32 filters; 256 units)",
}
NETWORKS: Mapping[Network, Sequence[str]] = {
    "nature": (),
    "tiny": ("defaults.agent.conv_channels=[16, 32]", "defaults.agent.hidden=256"),
}
AS_WE_USE_IT = (
    "defaults.agent.double=true",
    "defaults.agent.dueling=true",
    "defaults.agent.n_step=3",
    "defaults.replay.priority_exponent=0.6",
)


@dataclass(frozen=True)
class Setting:
    """One workload."""

    network: Network
    samples_per_insert: int
    as_we_use_it: bool = False
    """Double, dueling, three steps, prioritized: no peer's workload, beside the limit alone."""

    @property
    def label(self) -> str:
        """For people."""
        ours = ", Double, dueling, n 3, prioritized" if self.as_we_use_it else ""
        return f"Pong, {LABELS[self.network]}, {self.samples_per_insert} samples per insert{ours}"

    @property
    def overrides(self) -> list[str]:
        """What our configuration differs in."""
        ratio = f"defaults.replay.samples_per_insert={self.samples_per_insert}"
        return [ratio, *NETWORKS[self.network], *(AS_WE_USE_IT if self.as_we_use_it else ())]

    @property
    def name(self) -> str:
        """For directories."""
        return f"{self.network}-{self.samples_per_insert}{'-ours' * self.as_we_use_it}"


@dataclass(frozen=True)
class Peer:
    """A competitor; its script is `peers/train_ENVIRONMENT.py`."""

    name: str
    environment: str
    packages: Sequence[str]
    """Reported; the first one's version stands beside the name."""
    networks: Sequence[Network] = ("nature", "tiny")


CLEANRL = Peer(
    "CleanRL dqn_atari.py", "cleanrl", ("torch", "gymnasium", "ale-py", "numpy"), ("nature",)
)
PEERS = (
    CLEANRL,
    Peer("SB3 DQN", "sb3", ("stable-baselines3", "torch", "gymnasium", "ale-py", "numpy")),
    Peer("Tianshou DQN, EnvPool", "tianshou", ("tianshou", "torch", "envpool", "numpy")),
    Peer("RLlib DQN", "rllib", ("ray", "torch", "gymnasium", "ale-py", "numpy")),
)
HEADLINE = Setting("nature", 8)
SETTINGS = (
    HEADLINE,
    *(Setting("nature", ratio) for ratio in (4, 1)),
    *(Setting("tiny", ratio) for ratio in (8, 4, 1)),
    Setting("nature", 8, as_we_use_it=True),
)


@dataclass(frozen=True)
class Limit:
    """The limit as a side: what one core did in its turn, on all cores."""

    served: ServedSide

    def turn(self, seconds: float) -> Window:
        """Work for so long on one thread."""
        window = self.served.turn(seconds)
        return replace(window, wall_s=window.cpu_s / len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Turns:
    """How long and how often."""

    seconds: float
    rounds: int


def measure(plan: Plan) -> list[Row]:
    """Every setting; in a hurry the headline alone."""
    turns = Turns(4.0, 1) if plan.quick else Turns(10.0, 2)
    settings = (HEADLINE,) if plan.quick else SETTINGS
    return [row for setting in settings for row in _measure(plan, setting, turns)]


def _measure(plan: Plan, setting: Setting, turns: Turns) -> list[Row]:
    asked = {"config": str(CONFIG), "overrides": setting.overrides}
    ours = our_program(plan.scratch, setting)
    with ServedSide(OURS, "ours/limit_end_to_end.py", asked) as served:
        plan.add_versions("ours", served.versions)
        check_targets(served.facts())
        with TrainingSide(ours) as us:
            against_limit = pairs(us, Limit(served), turns.seconds, turns.rounds)
            rows = limit_rows(setting, against_limit, served.facts()["cpu_s_per_step"])
            for peer in () if setting.as_we_use_it else PEERS:
                rows += _beside(plan, setting, turns, peer, us, against_limit)
            return rows + lag_rows(setting, ours)


def our_program(scratch: Path, setting: Setting) -> Program:
    """`rl-cluster train` as its users call it."""
    task = our_task(setting)
    directory = _directory(scratch, setting, "ours")
    program = [str(OURS.parent / "rl-cluster"), "train", str(CONFIG)]
    return Program(
        "rl-cluster",
        [*program, "--run", str(directory / "run"), "--set", *setting.overrides],
        directory,
        directory / "run" / "metrics.jsonl",
        setting.samples_per_insert,
        task.learner.batch,
        settle_s=OUR_SETTLE_S,
        rest_s=OUR_REST_S,
        granularity=task.rollout.blocks_per_collect * task.rollout.block_length,
    )


def our_task(setting: Setting) -> TaskConfig:
    """Our configuration of a setting."""
    (task,) = load(CONFIG, setting.overrides).tasks.values()
    return task


def peer_program(plan: Plan, setting: Setting, peer: Peer) -> Program:
    """A peer's script with what all sides have in common."""
    task = our_task(setting)
    directory = _directory(plan.scratch, setting, peer.environment)
    asked: dict[str, Any] = {
        "network": setting.network,
        "samples_per_insert": setting.samples_per_insert,
        "batch": task.learner.batch,
        "capacity": task.replay.capacity_transitions,
        "learning_starts": task.replay.min_transitions,
        "epsilon": 0.05,
        "counts": str(directory / "counts.jsonl"),
        "checkout": str(plan.cleanrl),
    }
    script = HERE / "peers" / f"train_{peer.environment}.py"
    return Program(
        peer.name,
        [str(python_of(peer.environment)), "-u", str(script), json.dumps(asked)],
        directory,
        directory / "counts.jsonl",
        setting.samples_per_insert,
        task.learner.batch,
        {"PYTHONPATH": str(HERE)},
    )


def check_targets(facts: Mapping[str, Any]) -> None:
    """Compare our TD errors with plain ones, where the setting is plain.

    Raises:
      BenchmarkError: they are another's mathematics.
    """
    found, plain = facts.get("td_errors", ()), facts.get("td_errors_plain", ())
    worst = max((abs(a - b) for a, b in zip(found, plain, strict=True)), default=0.0)
    if worst > TARGETS_DIFFER:
        raise BenchmarkError(f"our TD errors differ from plain ones by {worst:.3g}")


def limit_rows(
    setting: Setting, turns: Sequence[tuple[Window, Window]], costs: Mapping[str, float]
) -> list[Row]:
    """Us beside the limit, with what the limit is made of."""
    parts = ", ".join(f"{part} {1e3 * cost:.3f}" for part, cost in costs.items())
    rows = []
    for suffix, value in MEASURES:
        shares = [value(ours) / value(limit) for ours, limit in turns]
        low, high = interval(shares)
        us = statistics.median(value(ours) for ours, _ in turns)
        limit = statistics.median(value(limit) for _, limit in turns)
        note = f"limit: CPU ms a step of {parts}; 95 % of the share: {low:.2f} to {high:.2f}"
        raw = {"us": [vars(ours) for ours, _ in turns], "limit": [vars(it) for _, it in turns]}
        row = Row(ROW, setting.label, UNIT + suffix, us, "", limit=limit, note=note, raw=raw)
        rows.append(replace(row, of_limit=statistics.median(shares)))
    return rows


def _beside(
    plan: Plan,
    setting: Setting,
    turns: Turns,
    peer: Peer,
    us: TrainingSide,
    against_limit: Sequence[tuple[Window, Window]],
) -> list[Row]:
    name = peer.name
    if why := why_not(plan, setting, peer):
        return [missing(ROW, setting.label, f"{UNIT}/s", name, why)]
    try:
        versions = peer_versions(plan, peer)
        plan.add_versions(peer.environment, versions)
        name = f"{peer.name} {next(iter(versions.values()))}"
        with TrainingSide(peer_program(plan, setting, peer)) as side:
            against_peer = pairs(us, side, turns.seconds, turns.rounds)
    except (BenchmarkError, OSError) as error:
        if us.failed:
            raise
        return [missing(ROW, setting.label, f"{UNIT}/s", name, str(error))]
    return compare(ROW, setting.label, UNIT, name, against_peer, against_limit)


def why_not(plan: Plan, setting: Setting, peer: Peer) -> str | None:
    """Why a peer cannot take part in a setting, if so."""
    if peer.environment in plan.missing:
        return plan.missing[peer.environment]
    if setting.network not in peer.networks:
        return f"it has no option for the {LABELS[setting.network]}"
    if peer is CLEANRL and plan.cleanrl is None:
        return "no checkout of CleanRL was named"
    return None


def peer_versions(plan: Plan, peer: Peer) -> dict[str, str]:
    """What a peer's environment holds; CleanRL itself is a commit."""
    code = (
        "import importlib.metadata, json, sys; "
        "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
    )
    command = [str(python_of(peer.environment)), "-c", code, *peer.packages]
    versions: dict[str, str] = json.loads(run_once(command, VERSIONS_TIMEOUT_S))
    if peer is CLEANRL:
        git = ["git", "-C", str(plan.cleanrl), "rev-parse", "--short", "HEAD"]
        return {"cleanrl": run_once(git, VERSIONS_TIMEOUT_S).strip(), **versions}
    return versions


def lag_rows(setting: Setting, ours: Program) -> list[Row]:
    """B6: what our own program said of itself in its last turn.

    Raises:
      BenchmarkError: something went wrong in it meanwhile.
    """
    rows = list(read_lines(ours.counts))
    run = [row for row in rows if row["task"] is None][-1]
    task = [row for row in rows if row["task"] is not None][-1]
    if run["incidents"]:
        raise BenchmarkError(f"our run had {run['incidents']} incidents, see its incidents.jsonl")
    figures = (("policy lag", "versions", "policy_lag"), ("replay age", "env steps", "replay_age"))
    return [
        Row(f"B6 {name}", f"{setting.label}, {share}", unit, task[f"{key}_{share}"], "")
        for name, unit, key in figures
        for share in ("p50", "p95")
    ]


def _directory(scratch: Path, setting: Setting, side: str) -> Path:
    directory = scratch / "end_to_end" / setting.name / side
    directory.mkdir(parents=True)
    return directory
