"""It learns: DQN through the whole Ray system, on frames and on vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_run import EXPERIMENTS, LiveRun


def test_catch_is_solved_from_pixels(tmp_path: Path) -> None:
    with LiveRun(EXPERIMENTS / "catch.yaml", tmp_path / "catch", "max_seconds=150") as run:
        summary = run.wait_for(
            lambda s: (s["tasks"]["Catch"]["best"] or {}).get("mean_return", -1) >= 0.8, 150
        )
        assert summary["tasks"]["Catch"]["evaluation"]["random_mean_return"] < -0.4
        assert run.interrupt() == 130
        run.check_nothing_left()


@pytest.mark.long
def test_cartpole_is_balanced_from_vectors(tmp_path: Path) -> None:
    with LiveRun(EXPERIMENTS / "cartpole.yaml", tmp_path / "cartpole", "max_seconds=150") as run:
        summary = run.wait_for(
            lambda s: (s["tasks"]["CartPole"]["best"] or {}).get("mean_return", 0) >= 195, 150
        )
        assert summary["tasks"]["CartPole"]["evaluation"]["random_mean_return"] < 60
        assert run.interrupt() == 130
        run.check_nothing_left()
