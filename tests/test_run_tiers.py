"""Four games on a tier of two: each gets its slice, and none loses what it has learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from live_run import EXPERIMENTS, LiveRun, command, lines

from rl_cluster.telemetry.incidents import read_incidents

pytestmark = pytest.mark.long

GAMES = ("A", "B", "C", "D")
SETTINGS = (
    "max_seconds=900",
    "telemetry.period_s=1",
    "load.tier=two",
    "load.tiers.two={games: 2, environments: 8, batch: 32}",
    "load.tiers.four={games: 4, environments: 8, batch: 32}",
    "load.slice_s=6",
    "defaults.env.name=Catch",
    "defaults.replay.min_transitions=200",
    "defaults.evaluation.video=false",
    "defaults.evaluation.games=2",
)


WHILE_IT_SAVED = 500
"""Environment steps: those taken after the learner's last save are in replay, and not counted."""


class Watched:
    """What a live run's summaries said, one after the other."""

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self.seen: list[dict[str, Any]] = []

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float) -> None:
        def look(summary: dict[str, Any]) -> bool:
            if not self.seen or summary["updated_at"] != self.seen[-1]["updated_at"]:
                self.seen.append(summary)
            return condition(summary)

        self.run.wait_for(look, timeout_s)

    @property
    def updates(self) -> dict[str, list[int]]:
        """Game to its learner updates, summary by summary."""
        return {g: [s["tasks"][g]["learner_updates"] for s in self.seen] for g in GAMES}


def at_once(summary: dict[str, Any]) -> int:
    """Games that have workers."""
    return sum(task["state"] != "queued" for task in summary["tasks"].values())


@pytest.mark.timeout(600)
def test_every_game_gets_its_slice_of_a_tier_and_at_once_all_of_a_larger_one(
    tmp_path: Path,
) -> None:
    config = tmp_path / "four.yaml"
    text = (EXPERIMENTS / "catch.yaml").read_text().replace("[Catch]", f"[{', '.join(GAMES)}]")
    config.write_text(text)
    with LiveRun(config, tmp_path / "run", *SETTINGS) as run:
        watched = Watched(run)
        watched.until(lambda s: all(t["learner_updates"] > 5 for t in s["tasks"].values()), 240)
        second_turn = {g: t["learner_updates"] + 5 for g, t in watched.seen[-1]["tasks"].items()}
        resting = [g for g in GAMES if watched.seen[-1]["tasks"][g]["state"] == "queued"]
        assert resting, "two of four wait"
        watched.until(
            lambda s: any(s["tasks"][g]["learner_updates"] > second_turn[g] for g in resting), 120
        )
        assert {at_once(s) for s in watched.seen} <= {0, 1, 2}
        assert {s["tier"]["effective"] for s in watched.seen} == {"two"}
        for game, updates in watched.updates.items():
            assert updates == sorted(updates), f"{game} lost what it had learned: {updates}"

        asked_s = time.time()
        assert command("tier", run.run_dir, "four").returncode == 0
        watched.until(lambda s: s["tier"]["effective"] == "four" and at_once(s) == 4, 30)
        grown = {g: u[-1] + 5 for g, u in watched.updates.items()}
        watched.until(
            lambda s: all(s["tasks"][g]["learner_updates"] > grown[g] for g in GAMES), 120
        )
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
        for game, updates in watched.updates.items():
            assert updates == sorted(updates), f"{game} lost what it had learned: {updates}"
        incidents = [i for i in read_incidents(run.run_dir) if i.time >= asked_s]
        assert [i.cause for i in incidents if i.kind == "tier_requested"] == [
            "a person asked for four"
        ]
        assert any("four was asked for" in i.cause for i in incidents if i.kind == "load_changed")
        found = read_incidents(run.run_dir)
        assert not [i for i in found if i.kind in ("worker_failed", "not_saved", "task_parked")]
        _check_resumed(run.run_dir)


def _check_resumed(run_dir: Path) -> None:
    """Whoever came back had its replay back, too, and went on from its own checkpoint."""
    back = {i.task for i in read_incidents(run_dir) if i.kind == "restored"}
    assert back, "somebody came back"
    rows = [row for row in lines(run_dir / "metrics.jsonl") if row["task"] in back]
    for game in back:
        steps = [row["env_steps"] for row in rows if row["task"] == game]
        assert all(b > a - WHILE_IT_SAVED for a, b in pairwise(steps)), steps
