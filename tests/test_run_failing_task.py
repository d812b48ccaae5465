"""One game's failure stays its own: it is parked with its reason and the other goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_run import EXPERIMENTS, LiveRun, lines

SETTINGS = (
    "tasks.Good.env.name=Catch",
    "tasks.Bad.env.name=Catch",
    "tasks.Bad.env.entry=faulty_env:make",
    "tasks.Bad.env.settings.breaks_after=60",
    "supervisor.max_restarts=1",
    "supervisor.backoff_s=0.5",
    "max_seconds=600",
)


@pytest.mark.timeout(300)
def test_a_crashing_game_is_parked_while_the_other_trains(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    text = (EXPERIMENTS / "catch.yaml").read_text().replace("[Catch]", "{Good: {}, Bad: {}}")
    config.write_text(text)
    with LiveRun(config, tmp_path / "run", *SETTINGS) as run:
        summary = run.wait_for(lambda s: s["tasks"]["Bad"]["state"] == "failed", 150)
        assert "the game broke" in summary["tasks"]["Bad"]["failure"]
        # In 30 rows an environment seals its first block if that is at most 26 long: 182 rows.
        assert summary["tasks"]["Bad"]["env_steps"] > 182, "the second life was collected from, too"
        before = summary["tasks"]["Good"]["learner_updates"]
        later = run.wait_for(lambda s: s["tasks"]["Good"]["learner_updates"] > before + 50, 60)
        assert later["tasks"]["Good"]["restarts"] == 0
        kinds = [i["kind"] for i in lines(run.run_dir / "incidents.jsonl") if i["task"] == "Bad"]
        assert kinds.count("worker_failed") == 2 and kinds[-1] == "task_parked"
        assert run.interrupt() == 130
        run.check_nothing_left()
