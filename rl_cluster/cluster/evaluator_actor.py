"""Shell of the evaluator: takes a checkpoint, plays whole games with it, says how good it is.

Invariant: what is evaluated is a checkpoint on disk, so the best evaluation names exactly the
parameters that earned it. Evaluation yields the cores to training.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.cluster import names
from rl_cluster.cluster.actors import cause_of
from rl_cluster.cluster.evaluations import EvaluationError, Evaluations
from rl_cluster.cluster.messages import Candidate, EvaluatorStatus, RunClock
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.evaluation import GameResults
from rl_cluster.evaluator import Evaluator
from rl_cluster.fence import Fence
from rl_cluster.supervision.health import Health

_NICENESS = 10


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
        self._name = names.evaluator_name(task)
        self._config, self._fence = config, fence
        self._dir, self._clock = Path(task_dir), RunClock(wall_s)
        self._vitals = Vitals(fence.epoch, "working")
        self._evaluator = Evaluator(config, spec, self._vitals.progress)
        self._evaluations = Evaluations(task, self._dir, fence, self._vitals)
        self._vitals.keep(self._run, "evaluator")

    @once_made
    def __repr__(self) -> str:
        """Name, state and the newest policy that was judged."""
        newest = self._evaluations.newest
        return self._vitals.line(
            self._name, "nothing judged" if newest is None else f"policy {newest.policy_version}"
        )

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
            candidate = self._evaluations.candidate()
            if candidate is not None and candidate.step != evaluated_step:
                try:
                    self._evaluate(candidate, random)
                except (OSError, CheckpointError, EvaluationError) as error:
                    self._evaluations.say(
                        "evaluation_failed", cause_of(error), "the next one is due"
                    )
                evaluated_step = candidate.step
            rest_s = self._config.evaluation.period_s - (time.monotonic() - start_s)
            with self._vitals.phase("waiting"):
                time.sleep(max(1.0, rest_s))

    def status(self) -> EvaluatorStatus:
        """The newest evaluation and the best."""
        evaluations = self._evaluations
        return EvaluatorStatus(evaluations.newest, evaluations.best, evaluations.take_notices())

    def _evaluate(self, candidate: Candidate, random: GameResults) -> None:
        checkpoint = CheckpointStore.load(candidate.path)
        evaluation, recorder = self._evaluator.evaluate(checkpoint, random, self._clock.wall_s())
        improved = self._evaluations.take(evaluation, candidate)
        if recorder is not None:
            with self._vitals.phase("saving"), self._fence.hold():
                recorder.save(self._dir / "videos" / "newest.gif")
                if improved:
                    recorder.save(self._dir / "videos" / "best.gif")
