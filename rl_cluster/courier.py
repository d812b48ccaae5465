"""The way of a policy from a checkpoint to the shelf: judged, exported, checked.

Invariant: what gets a version acts as the network that it was made of does, on rows that rovers
really sent, and is not clearly worse than the policy that the rovers have. Nothing here talks to
rovers; who does takes the newest version from the shelf.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rl_cluster.agents.sac_policy import RecurrentPolicy
from rl_cluster.checkpoint import Checkpoint
from rl_cluster.config import TaskConfig
from rl_cluster.environments import make_environment
from rl_cluster.evaluation import Evaluation, GameResults
from rl_cluster.policy_export import check_policy, export_policy
from rl_cluster.policy_shelf import PolicyRecord, PolicyShelf
from rl_cluster.rover_evaluation import Drive, Memory, RoverPolicy, drive, random_tracks
from rl_cluster.rover_learning import sac_shape
from rl_cluster.supervision.gate import Score, Verdict, judge

KEPT_POLICIES = 20
"""Newest versions on the shelf."""


@dataclass(frozen=True)
class Packed:
    """A policy that may be sent, but for the gate."""

    onnx: bytes
    policy_version: int
    learner_updates: int
    difference: float
    """Greatest between file and network."""


class Judge:
    """Lets policies drive in the simulator that a task's `env` names."""

    def __init__(self, task: TaskConfig, on_step: Callable[[], object]) -> None:
        """Prepare a task's evaluations; `on_step` is called after each step of a drive."""
        self._task, self._on_step = task, on_step
        settings = task.evaluation
        self._seeds = [settings.seed + i for i in range(settings.games)]
        self._random: GameResults | None = None

    def evaluate(
        self, policy: RecurrentPolicy, checkpoint: Checkpoint, wall_s: float
    ) -> Evaluation:
        """Drive one whole episode from each start, beside random driving from the same."""

        def act(observations: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
            actions, hx, cx = policy(observations, *memory)
            return actions, (hx, cx)

        if self._random is None:
            self._random = self._drive(random_tracks(self._seeds)).results
        driven, random = self._drive(act), self._random
        found = driven.results
        learner, replay = checkpoint.state["learner"], checkpoint.state["replay"]
        env_steps = int(replay["env_steps"]) if replay else 0
        return Evaluation(
            time=time.time(),
            wall_s=wall_s,
            env_steps=env_steps,
            env_frames=env_steps,
            learner_updates=learner["updates"],
            policy_version=learner["policy_version"],
            episodes=len(found.returns),
            mean_return=float(found.returns.mean()),
            std_return=_spread(found.returns),
            returns=found.returns.tolist(),
            lengths=found.lengths.tolist(),
            random_mean_return=float(random.returns.mean()),
            random_std_return=_spread(random.returns),
            human_normalized=None,
            seeds=self._seeds,
            epsilon=0.0,
            others={
                "collisions_per_min": driven.collisions_per_min,
                "ground_m2_per_min": driven.ground_m2_per_min,
            },
        )

    def _drive(self, policy: RoverPolicy) -> Drive:
        env = make_environment(self._task.env, num_envs=len(self._seeds), seeds=self._seeds)
        try:
            return drive(env, policy, on_step=self._on_step)
        finally:
            env.close()


def load_policy(task: TaskConfig, checkpoint: Checkpoint) -> RecurrentPolicy:
    """The policy of a checkpoint.

    Raises:
      ValueError: it is of another architecture.
    """
    policy = RecurrentPolicy(sac_shape(task))
    policy.load_named(checkpoint.model)
    return policy


def pack(policy: RecurrentPolicy, checkpoint: Checkpoint, observations: np.ndarray) -> Packed:
    """Export a policy and check the file on (K, ROW) real observations.

    Raises:
      PolicyError: it is not what the protocol says, or does not act as the network does.
    """
    onnx = export_policy(policy.actor)
    difference = check_policy(onnx, policy.actor, observations)
    learner = checkpoint.state["learner"]
    return Packed(onnx, learner["policy_version"], learner["updates"], difference)


def verdict(
    task: TaskConfig, evaluation: Evaluation | None, flying: PolicyRecord | None
) -> Verdict:
    """Whether a policy may take the place of the one on the rovers."""
    candidate = incumbent = None
    if evaluation is not None:
        candidate = Score(evaluation.mean_return, evaluation.episodes)
    if flying is not None and flying.mean_return is not None:
        incumbent = Score(flying.mean_return, flying.episodes)
    return judge(candidate, incumbent, task.stream.gate_margin)


def shelve(
    shelf: PolicyShelf, version: int, packed: Packed, evaluation: Evaluation | None
) -> PolicyRecord:
    """Keep a policy under a version."""
    return shelf.add(
        packed.onnx,
        version=version,
        policy_version=packed.policy_version,
        learner_updates=packed.learner_updates,
        mean_return=None if evaluation is None else evaluation.mean_return,
        episodes=0 if evaluation is None else evaluation.episodes,
        reason="new",
        time_s=time.time(),
    )


def go_back(shelf: PolicyShelf, to: int, version: int) -> PolicyRecord:
    """Keep an earlier policy once more, as the newest version.

    Raises:
      PolicyShelfError: that one is not kept any more, or not whole.
    """
    onnx = shelf.load(to)
    earlier = next(record for record in shelf.records() if record.version == to)
    return shelf.add(
        onnx,
        version=version,
        policy_version=earlier.policy_version,
        learner_updates=earlier.learner_updates,
        mean_return=earlier.mean_return,
        episodes=earlier.episodes,
        reason=f"back to {to}",
        time_s=time.time(),
    )


def _spread(returns: np.ndarray) -> float:
    """Sample standard deviation."""
    return float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
