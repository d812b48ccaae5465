"""Shell of the evaluator: takes a checkpoint, plays whole games with it, says how good it is.

Invariant: what is evaluated is a checkpoint on disk, so the best evaluation names exactly the
parameters that earned it. Evaluation yields the cores to training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.cluster.actors import Actor, cause_of, read
from rl_cluster.cluster.messages import (
    Candidate,
    EvaluatorStatus,
    RunClock,
    notice,
)
from rl_cluster.cluster.names import learner_name
from rl_cluster.cluster.vitals import Vitals
from rl_cluster.config import TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.evaluation import (
    Best,
    Evaluation,
    GameResults,
    append_evaluation,
    improves,
    is_worse_than_random,
    read_evaluations,
)
from rl_cluster.evaluator import Evaluator
from rl_cluster.fence import Fence
from rl_cluster.supervision.health import Health

_NICENESS = 10
_LEARNER_TIMEOUT_S = 60.0


class EvaluationError(ArithmeticError):
    """Games whose returns say nothing."""


class EvaluatorActor:
    """Evaluator of one task."""

    def __init__(
        self,
        task: str,
        config: TaskConfig,
        spec: EnvironmentSpec,
        task_dir: str,
        wall_s: float,
        fence: Fence,
    ) -> None:
        os.nice(_NICENESS)
        torch.set_num_threads(1)
        self._task, self._config, self._spec = task, config, spec
        self._dir, self._clock, self._fence = Path(task_dir), RunClock(wall_s), fence
        self._vitals = Vitals(fence.epoch, "working")
        self._evaluator = Evaluator(config, spec, self._vitals.progress)
        earlier = read_evaluations(self._dir / "evaluations.jsonl")
        self._newest = earlier[-1] if earlier else None
        self._best = _best_of(earlier)
        self._notices: list[dict[str, str]] = []
        self._vitals.keep(self._run, "evaluator")

    def health(self) -> Health:
        """Say how the work goes on; answered beside it."""
        return self._vitals.report()

    def change(self, config: TaskConfig) -> None:
        """Take another period from the next evaluation on."""
        self._config = config

    def _run(self) -> None:
        """Evaluate, wait for the rest of the period, and so on, for ever."""
        with self._vitals.phase("starting"):  # it yields the cores: on a busy host this takes long
            random = self._evaluator.random_baseline()
        evaluated_step = -1
        while True:
            start_s = time.monotonic()
            candidate = self._ask_learner()
            if candidate is not None and candidate.step != evaluated_step:
                try:
                    self._evaluate(candidate, random)
                except (OSError, CheckpointError, EvaluationError) as error:
                    self._notices.append(
                        notice("evaluation_failed", cause_of(error), "the next one is due")
                    )
                evaluated_step = candidate.step
            rest_s = self._config.evaluation.period_s - (time.monotonic() - start_s)
            with self._vitals.phase("waiting"):
                time.sleep(max(1.0, rest_s))

    def status(self) -> EvaluatorStatus:
        """The newest evaluation and the best."""
        notices, self._notices = tuple(self._notices), []
        return EvaluatorStatus(self._newest, self._best, notices)

    def _evaluate(self, candidate: Candidate, random: GameResults) -> None:
        checkpoint = CheckpointStore.load(candidate.path)
        evaluation, recorder = self._evaluator.evaluate(checkpoint, random, self._clock.wall_s())
        if not math.isfinite(evaluation.mean_return - evaluation.random_mean_return):
            raise EvaluationError(
                f"returns are not finite: mean {evaluation.mean_return}, of the random policy "
                f"{evaluation.random_mean_return}"
            )
        known = [best for best in (self._best, candidate.best) if best is not None]
        best = max(known, key=lambda b: b.mean_return, default=None)
        improved = improves(best, evaluation)
        self._best = Best(evaluation.mean_return, candidate.step) if improved else best
        self._tell_learner(candidate.step, self._best if improved else None)
        self._warn_if_worse_than_random(evaluation)
        self._newest = evaluation
        with self._vitals.phase("saving"), self._fence.hold():
            append_evaluation(self._dir / "evaluations.jsonl", evaluation)
            if recorder is not None:
                recorder.save(self._dir / "videos" / "newest.gif")
                if improved:
                    recorder.save(self._dir / "videos" / "best.gif")

    def _warn_if_worse_than_random(self, evaluation: Evaluation) -> None:
        """An incident when a policy falls below random play; not again while it stays there."""
        before = self._newest is not None and is_worse_than_random(self._newest)
        if is_worse_than_random(evaluation) and not before:
            cause = (
                f"mean return {evaluation.mean_return:.2f} over {evaluation.episodes} games; the "
                f"random policy has {evaluation.random_mean_return:.2f}"
            )
            self._notices.append(notice("worse_than_random", cause, "training goes on"))

    def _ask_learner(self) -> Candidate | None:
        """A checkpoint to evaluate; None while there is no learner to ask."""
        with self._vitals.phase("waiting"):
            return self._with_learner(
                lambda learner: read(learner.candidate.remote(), _LEARNER_TIMEOUT_S)
            )

    def _tell_learner(self, step: int, best: Best | None) -> None:
        with self._vitals.phase("waiting"):
            self._with_learner(
                lambda learner: read(learner.evaluated.remote(step, best), _LEARNER_TIMEOUT_S)
            )

    def _with_learner(self, call: Callable[[Actor], Candidate | None]) -> Candidate | None:
        try:
            return call(ray.get_actor(learner_name(self._task)))
        except (ValueError, RayError) as error:  # ValueError: no actor of that name now
            self._notices.append(notice("learner_silent", cause_of(error), "evaluation waits"))
            return None


def _best_of(evaluations: list[Evaluation]) -> Best | None:
    best = max(evaluations, key=lambda e: e.mean_return, default=None)
    return None if best is None else Best(best.mean_return, best.learner_updates)
