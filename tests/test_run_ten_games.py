"""`experiments/atari_ten_games.yaml` on its tier, with small games and short slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_run import EXPERIMENTS, LiveRun

from rl_cluster.telemetry.incidents import read_incidents

pytestmark = pytest.mark.long

SETTINGS = (
    "max_seconds=600",
    "telemetry.period_s=1",
    "load.slice_s=10",
    "defaults.env={entry: 'envs.catch:make', name: Catch}",
    "defaults.replay.capacity_transitions=4000",
    "defaults.replay.min_transitions=300",
    "defaults.evaluation.video=false",
)


@pytest.mark.timeout(600)
def test_ten_games_take_turns_on_the_light_tier_and_every_one_learns(tmp_path: Path) -> None:
    most_at_once = 0
    with LiveRun(EXPERIMENTS / "atari_ten_games.yaml", tmp_path / "run", *SETTINGS) as run:

        def every_game_learned(summary: dict[str, Any]) -> bool:
            nonlocal most_at_once
            tasks = summary["tasks"].values()
            most_at_once = max(most_at_once, sum(task["state"] != "queued" for task in tasks))
            return all(task["learner_updates"] > 0 for task in tasks)

        summary = run.wait_for(every_game_learned, 400)
        assert len(summary["tasks"]) == 10 and most_at_once == 2
        assert summary["tier"] == {"requested": "light", "effective": "light"}
        assert run.interrupt() == 130, run.log()
        run.check_nothing_left()
        found = read_incidents(run.run_dir)
        assert not [i for i in found if i.kind in ("worker_failed", "not_saved", "task_parked")]
