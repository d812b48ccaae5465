"""What evaluating actors share: the checkpoint they ask the learner for, and what becomes of it.

Invariant: an evaluation is written down under the fence of its writer, and the learner keeps the
checkpoint that earned the best one: no other is asked for before the learner has that one safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError

from rl_cluster.cluster.actors import Actor, cause_of, read
from rl_cluster.cluster.messages import Candidate, notice
from rl_cluster.cluster.names import learner_name
from rl_cluster.cluster.vitals import Vitals
from rl_cluster.evaluation import (
    Best,
    Evaluation,
    append_evaluation,
    improves,
    is_worse_than_random,
    read_evaluations,
)
from rl_cluster.fence import Fence
from rl_cluster.telemetry.jsonl import put_aside

_LEARNER_TIMEOUT_S = 60.0

_Answer = TypeVar("_Answer")


class EvaluationError(ArithmeticError):
    """Games whose returns say nothing."""


class Evaluations:
    """Candidates and evaluations of one task.

    Args:
      task: its name. task_dir: its directory. fence: of the evaluating actor. vitals: of the same.
    """

    def __init__(self, task: str, task_dir: Path, fence: Fence, vitals: Vitals) -> None:
        self._task, self._path = task, task_dir / "evaluations.jsonl"
        self._fence, self._vitals = fence, vitals
        self._notices: list[dict[str, str]] = []
        earlier = self._earlier()
        self.newest = earlier[-1] if earlier else None
        self.best = _best_of(earlier)
        self._untold = self.best

    def _earlier(self) -> list[Evaluation]:
        try:
            return read_evaluations(self._path)
        except ValueError as error:
            cause = f"{error}; the file was put aside as {put_aside(self._path).name}"
            self.say("file_damaged", cause, "the learner still knows the best")
            return []

    def candidate(self) -> Candidate | None:
        """A checkpoint to evaluate; None while there is no learner to ask."""
        with self._vitals.phase("waiting"):
            if not self._has_told_the_best():
                return None  # the next candidate would take this one's place on disk
            return self._with_learner(
                lambda learner: read(learner.candidate.remote(), _LEARNER_TIMEOUT_S)
            )

    def take(self, evaluation: Evaluation, candidate: Candidate) -> bool:
        """Write an evaluation down, and tell the learner; whether it is the best so far.

        Raises:
          EvaluationError: its returns are not finite.
          OSError: it could not be written.
        """
        if not math.isfinite(evaluation.mean_return - evaluation.random_mean_return):
            raise EvaluationError(
                f"returns are not finite: mean {evaluation.mean_return}, of the random policy "
                f"{evaluation.random_mean_return}"
            )
        known = [best for best in (self.best, candidate.best) if best is not None]
        best = max(known, key=lambda b: b.mean_return, default=None)
        improved = improves(best, evaluation)
        self.best = Best(evaluation.mean_return, candidate.step) if improved else best
        if improved:
            self._untold = self.best
            with self._vitals.phase("waiting"):
                self._has_told_the_best()
        self._warn_if_worse_than_random(evaluation)
        self.newest = evaluation
        with self._vitals.phase("saving"), self._fence.hold():
            append_evaluation(self._path, evaluation)
        return improved

    def say(self, kind: str, cause: str, action: str) -> None:
        """Add a notice."""
        self._notices.append(notice(kind, cause, action))

    def take_notices(self) -> tuple[dict[str, str], ...]:
        """Notices since the last call."""
        notices, self._notices = tuple(self._notices), []
        return notices

    def _warn_if_worse_than_random(self, evaluation: Evaluation) -> None:
        """An incident when a policy falls below random play; not again while it stays there."""
        before = self.newest is not None and is_worse_than_random(self.newest)
        if is_worse_than_random(evaluation) and not before:
            cause = (
                f"mean return {evaluation.mean_return:.2f} over {evaluation.episodes} games; the "
                f"random policy has {evaluation.random_mean_return:.2f}"
            )
            self.say("worse_than_random", cause, "training goes on")

    def _has_told_the_best(self) -> bool:
        """Whether the learner keeps the best; a new one is told what the last one missed."""
        best = self._untold
        if best is not None and self._with_learner(
            lambda learner: bool(read(learner.take_best.remote(best), _LEARNER_TIMEOUT_S))
        ):
            self._untold = None
        return self._untold is None

    def _with_learner(self, call: Callable[[Actor], _Answer]) -> _Answer | None:
        try:
            return call(ray.get_actor(learner_name(self._task)))
        except (ValueError, RayError) as error:  # ValueError: no actor of that name now
            self.say("learner_silent", cause_of(error), "evaluation waits")
            return None


def _best_of(evaluations: list[Evaluation]) -> Best | None:
    best = max(evaluations, key=lambda e: e.mean_return, default=None)
    return None if best is None else Best(best.mean_return, best.learner_updates)
