"""What evaluating actors tell the learner: the best is told until it is safe, whoever dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reading_task import local_cluster

from rl_cluster.cluster.actors import Actor, read, spawn
from rl_cluster.cluster.evaluations import Evaluations
from rl_cluster.cluster.messages import Candidate
from rl_cluster.cluster.names import learner_name
from rl_cluster.cluster.vitals import Vitals
from rl_cluster.evaluation import Best, Evaluation, read_evaluations
from rl_cluster.fence import Fence, advance


class Keeping:
    """A learner's side of it: the best that it was told, unless its disk refuses."""

    def __init__(self, takes: bool = True) -> None:
        self._takes, self._asked = takes, 0
        self._best: Best | None = None

    def take_best(self, best: Best) -> bool:
        """As a learner does."""
        self._best = best if self._takes else None
        return self._takes

    def candidate(self) -> Candidate:
        """As a learner does; a candidate takes the place of the one before."""
        self._asked += 1
        return Candidate(f"step-{self._asked}", self._asked, self._best)

    def seen(self) -> tuple[Best | None, int]:
        """The best it keeps, and how many candidates were asked for."""
        return self._best, self._asked


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster("test-evaluations"):
        yield


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    fence = Fence(tmp_path / "epoch", advance(tmp_path / "epoch", 1.0))
    return Evaluations(tmp_path.name, tmp_path, fence, Vitals(1, "working"))


def evaluation(mean_return: float, step: int) -> Evaluation:
    return Evaluation(
        1.0,
        1.0,
        4,
        4,
        step,
        step,
        1,
        mean_return,
        0.0,
        [mean_return],
        [1],
        0.1,
        0.0,
        None,
        [0],
        0.0,
    )


def learner(tmp_path: Path, takes: bool = True) -> Actor:
    """Of the task that the test is for."""
    actor = spawn(Keeping, learner_name(tmp_path.name), takes)
    read(actor.seen.remote(), 60.0)
    return actor


def test_the_best_is_told_to_the_learner_that_follows_before_a_candidate_is_asked_for(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    best = Best(0.9, 7)
    assert evaluations.take(evaluation(0.9, 7), Candidate("step-7", 7, None))
    assert [said["kind"] for said in evaluations.take_notices()] == ["learner_silent"]
    assert evaluations.candidate() is None, "nobody is there"
    heir = learner(tmp_path)
    candidate = evaluations.candidate()
    assert candidate is not None and candidate.best == best, "it knew when it was asked"
    assert read(heir.seen.remote(), 60.0) == (best, 1)
    assert [found.mean_return for found in read_evaluations(tmp_path / "evaluations.jsonl")] == [
        0.9
    ]


def test_an_evaluator_that_begins_tells_what_the_one_before_may_not_have_told(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    assert evaluations.take(evaluation(0.9, 7), Candidate("step-7", 7, None))
    fence = Fence(tmp_path / "epoch", advance(tmp_path / "epoch", 1.0))
    heir = Evaluations(tmp_path.name, tmp_path, fence, Vitals(2, "working"))
    keeping = learner(tmp_path)
    assert heir.candidate() is not None
    assert read(keeping.seen.remote(), 60.0) == (Best(0.9, 7), 1)


def test_while_the_learner_s_disk_refuses_the_best_keeps_its_place_as_candidate(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    refusing = learner(tmp_path, takes=False)
    assert evaluations.take(evaluation(0.9, 7), Candidate("step-7", 7, None))
    assert evaluations.candidate() is None
    assert read(refusing.seen.remote(), 60.0) == (None, 0), "no other was asked for"


def test_an_evaluation_that_is_not_the_best_waits_for_nobody(evaluations: Evaluations) -> None:
    assert not evaluations.take(evaluation(0.5, 8), Candidate("step-8", 8, Best(0.7, 3)))
    assert evaluations.take_notices() == ()


def test_damaged_evaluations_are_put_aside_and_named(tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text("not JSON\n{}\n")
    fence = Fence(tmp_path / "epoch", advance(tmp_path / "epoch", 1.0))
    found = Evaluations(tmp_path.name, tmp_path, fence, Vitals(1, "working"))
    (said,) = found.take_notices()
    assert said["kind"] == "file_damaged" and "evaluations.jsonl, line 1" in said["cause"]
    assert list(tmp_path.glob("evaluations.jsonl.damaged-*"))
    assert not (tmp_path / "evaluations.jsonl").exists() and found.best is None
