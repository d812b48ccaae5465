"""The evaluator: fixed seeds, fresh environments, the policy of one checkpoint.

Invariant: every evaluation of a task plays the same starts, so two of them differ by their
policies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.checkpoint import Checkpoint, check_schema
from rl_cluster.config import TaskConfig
from rl_cluster.environments import EnvironmentSpec, make_environment
from rl_cluster.evaluation import (
    Evaluation,
    GameResults,
    Progress,
    evaluate,
    random_baseline,
)
from rl_cluster.learner import build_network, checkpoint_schema
from rl_cluster.video import VideoRecorder

if TYPE_CHECKING:
    from envs.base import AsyncVectorEnv


class Evaluator:
    """Plays the games of one task's evaluations."""

    def __init__(
        self, config: TaskConfig, spec: EnvironmentSpec, progress: Callable[[], None]
    ) -> None:
        """Prepare a task's evaluations; `progress` is called at every step of a game."""
        self._config, self._spec, self._note_progress = config, spec, progress
        settings = config.evaluation
        self._seeds = [settings.seed + i for i in range(settings.games)]
        self._policy = GreedyPolicy(
            build_network(config.agent, spec), bfloat16=config.rollout.precision == "bfloat16"
        )

    def random_baseline(self) -> GameResults:
        """One whole game of uniformly random play from each start."""
        env = self._environment()
        results = random_baseline(env, rng=self._rng(), should_stop=self._go_on)
        env.close()
        assert results is not None
        return results

    def evaluate(
        self, checkpoint: Checkpoint, random: GameResults, wall_s: float
    ) -> tuple[Evaluation, VideoRecorder | None]:
        """Play one whole game from each start with a checkpoint's online network.

        Args:
          checkpoint: as the learner saved it.
          random: what `random_baseline` gave.
          wall_s: the run's time at work, for the record.

        Raises:
          SchemaError: the checkpoint is of another architecture.
        """
        check_schema("the checkpoint to evaluate", checkpoint.schema, self.schema)
        prefix = "online."
        self._policy.load_named(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in checkpoint.model.items()
                if name.startswith(prefix)
            }
        )
        recorder = VideoRecorder() if self._films else None
        env = self._environment()
        evaluation = evaluate(
            env,
            self._policy.actions,
            game=self._config.env.name,
            seeds=self._seeds,
            random=random,
            progress=self._progress(checkpoint, wall_s),
            frame_stack=self._config.agent.frame_stack,
            epsilon=self._config.evaluation.epsilon,
            rng=self._rng(),
            should_stop=self._go_on,
            record=recorder,
        )
        env.close()
        assert evaluation is not None
        return evaluation, recorder

    @property
    def schema(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be evaluated here."""
        return checkpoint_schema(self._config.agent, self._spec)

    @property
    def _films(self) -> bool:
        images = len(self._spec.obs_shape) == 2 and self._spec.obs_dtype == np.uint8
        return self._config.evaluation.video and images

    def _environment(self) -> AsyncVectorEnv:
        return make_environment(
            self._config.env, num_envs=len(self._seeds), seeds=self._seeds, threads=1
        )

    def _go_on(self) -> bool:
        self._note_progress()
        return False

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._config.evaluation.seed)

    def _progress(self, checkpoint: Checkpoint, wall_s: float) -> Progress:
        learner, replay = checkpoint.state["learner"], checkpoint.state["replay"]
        env_steps = int(replay["env_steps"]) if replay else 0
        return Progress(
            wall_s,
            env_steps,
            env_steps * self._spec.frame_skip,
            learner["updates"],
            learner["policy_version"],
        )
