"""What a learner says of skipped batches, and of checkpoints that could not be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from learning_samples import agent, batch

from rl_cluster.cluster.saves import TaskSaves
from rl_cluster.cluster.skips import Skips
from rl_cluster.config import TaskConfig
from rl_cluster.evaluation import Best
from rl_cluster.fence import Fence, advance
from rl_cluster.learner import Learner, StepReport


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def skipped(spoiled: bool = True) -> StepReport:
    sample = batch(0).sample
    nan = (np.nan, np.nan, np.nan)
    return StepReport(
        sample, None, *nan, 1e-3, "it is NaN", ("env/1",), sample if spoiled else None
    )


def test_all_batches_skipped_since_the_last_notice_are_one() -> None:
    skips = Skips(Clock())
    assert skips.take_notices(0) == []
    for _ in range(5):
        skips.add(skipped())
    (said,) = skips.take_notices(5)
    assert (said["kind"], said["cause"]) == ("batch_skipped", "it is NaN; blocks of env/1")
    assert said["detail"] == "5 in all"
    assert skips.take_notices(5) == []


def test_data_and_divergence_are_told_apart() -> None:
    skips = Skips(Clock())
    natures = set()
    for spoiled in (True, False):
        skips.add(skipped(spoiled))
        natures.add(skips.take_notices(1)[0]["nature"])
    assert len(natures) == 2


def test_the_end_is_said_once_after_a_minute_without_any() -> None:
    clock = Clock()
    skips = Skips(clock)
    skips.add(skipped())
    skips.take_notices(1)
    clock.now_s += 50.0
    skips.add(skipped())
    skips.take_notices(2)
    clock.now_s += 59.9
    assert skips.take_notices(2) == []
    clock.now_s += 0.2
    assert [said["kind"] for said in skips.take_notices(2)] == ["batches_finite"]
    clock.now_s += 600.0
    assert skips.take_notices(2) == []


def saves(tmp_path: Path) -> TaskSaves:
    path = tmp_path / "epoch"
    return TaskSaves(tmp_path / "run", "A", TaskConfig(), Fence(path, advance(path, 1.0)), "id")


def learner() -> Learner:
    dqn = agent()
    return Learner(dqn, dqn.online.vector.device, 10, lambda version, flat: None, {"hidden": 8})


def kinds(of: TaskSaves) -> list[str]:
    return [said["kind"] for said in of.take_notices()]


def test_failures_to_save_and_the_first_success_are_said(tmp_path: Path) -> None:
    own, writer = saves(tmp_path), learner()
    blocked = tmp_path / "run" / "A" / "checkpoints"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the directory should be")
    assert own.save(writer, None, TaskConfig()) is None
    assert own.save(writer, None, TaskConfig()) is None
    failures = own.take_notices()
    assert [said["kind"] for said in failures] == ["checkpoint_failed"] * 2
    assert len({said["nature"] for said in failures}) == 1
    assert failures[0]["nature"], "the system's number of the error"
    blocked.unlink()
    assert own.save(writer, None, TaskConfig()) is not None
    (said,) = own.take_notices()
    assert said["kind"] == "checkpoint_resumed"
    assert "2 in a row had failed" in said["cause"]
    assert own.save(writer, None, TaskConfig()) is not None
    assert kinds(own) == []


def test_the_first_success_of_a_life_is_said_since_the_life_before_may_have_failed(
    tmp_path: Path,
) -> None:
    own = saves(tmp_path)
    assert own.save(learner(), None, TaskConfig()) is not None
    assert kinds(own) == ["checkpoint_resumed"]


def test_a_best_that_the_disk_refuses_has_to_be_asked_for_again(tmp_path: Path) -> None:
    own, writer = saves(tmp_path), learner()
    path = own.save(writer, None, TaskConfig())
    assert path is not None
    own.take_notices()
    pointers = path.parent / "best"
    pointers.mkdir()  # where a pointer should be
    best = Best(0.5, writer.counters.updates)
    assert not own.take_best(best) and own.best is None
    assert kinds(own) == ["best_not_kept"]
    pointers.rmdir()
    assert own.take_best(best) and own.best == best
    assert own.take_best(Best(0.4, 1)) and own.best == best, "it keeps a better one"


def test_a_best_whose_checkpoint_is_gone_is_said_and_not_asked_for_again(tmp_path: Path) -> None:
    own = saves(tmp_path)
    own.save(learner(), None, TaskConfig())
    own.take_notices()
    assert own.take_best(Best(0.5, 4711)) and own.best is None
    (said,) = own.take_notices()
    assert said["kind"] == "best_not_kept" and "4711" in said["cause"]
