"""From what actors report to what people read: the summary and the rows of metrics.

Invariant: a figure that is not known yet is None or 0 as the summary's contract says, never a
guess. Rates are differences of counters over a short window, so a pause shows as 0 within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rl_cluster.cluster.messages import ReplayStatus
from rl_cluster.cluster.network_report import NetworkReport
from rl_cluster.cluster.rates import Rate
from rl_cluster.cluster.stream_report import StreamReport
from rl_cluster.cluster.task_group import TaskGroup
from rl_cluster.evaluation import Evaluation
from rl_cluster.telemetry.summary import Best, Returns, TaskState, TaskSummary, task_metrics
from rl_cluster.telemetry.summary import Evaluation as EvaluationSummary

_STARVED = 0.9  # share of the learner's time without a batch from which a task counts as waiting


@dataclass
class Totals:
    """Newest figures: they outlive the actor, and the session, that reported them."""

    env_steps: int = 0
    learner_updates: int = 0
    learner_samples: int = 0
    policy_version: int = 0
    skipped_batches: int = 0
    returns: Returns = field(default_factory=lambda: Returns(last=[], mean=None, episodes=0))
    evaluation: EvaluationSummary | None = None
    best: Best | None = None

    @staticmethod
    def of(earlier: TaskSummary | None) -> Totals:
        """Figures to start from: those that the session before ended with."""
        if earlier is None:
            return Totals()
        return Totals(
            env_steps=earlier["env_steps"],
            learner_updates=earlier["learner_updates"],
            policy_version=earlier["policy_version"],
            skipped_batches=earlier["skipped_batches"],
            returns=earlier["returns"],
            evaluation=earlier["evaluation"],
            best=earlier["best"],
        )


class TaskReport:
    """Turns one task's statuses into its part of the summary and its row of metrics."""

    def __init__(self, group: TaskGroup, earlier: TaskSummary | None) -> None:
        self._group = group
        self._totals = Totals.of(earlier)
        self._frames, self._samples = Rate(), Rate()
        self._network = NetworkReport(group)
        self._stream = StreamReport(group) if group.config.is_fleet else None
        self._final: TaskSummary | None = None

    @property
    def env_steps(self) -> int:
        """Environment steps of the task, over all sessions."""
        return self._totals.env_steps

    @property
    def ended(self) -> TaskState | None:
        """`completed` or `failed`, once the task is."""
        return self._final["state"] if self._final else None

    @property
    def failure(self) -> str | None:
        """Why the task was given up."""
        return self._final["failure"] if self._final else None

    def begin_again(self) -> None:
        """A person wants it tried once more."""
        self._final = None

    def end(self, state: TaskState, failure: str | None = None) -> None:
        """Keep the figures as they are now."""
        self._final = {
            **self.summary(),
            "state": state,
            "failure": failure,
            "env_frames_per_s": 0.0,
            "learner_samples_per_s": 0.0,
        }

    def refresh(self, now_s: float) -> None:
        """Read the newest statuses."""
        group, totals = self._group, self._totals
        self._network.refresh(now_s)
        if self._stream is not None:
            self._stream.refresh(now_s)
        replay, learner, evaluator = (
            group.replay_status, group.learner_status, group.evaluator_status)  # fmt: skip
        if replay is not None and replay.attached:
            totals.env_steps = replay.env_steps
            totals.returns = _returns(replay)
            self._frames.add(now_s, totals.env_steps * group.plan.spec.frame_skip)
        else:
            self._frames.hold(now_s)
        if learner is not None:
            totals.learner_updates = learner.updates
            totals.learner_samples = learner.samples
            totals.skipped_batches = learner.skipped_batches
            totals.policy_version = max(0, learner.policy_version)
            self._samples.add(now_s, totals.learner_samples)
        else:
            self._samples.hold(now_s)
        if evaluator is not None and evaluator.evaluation is not None:
            totals.evaluation = _evaluation(evaluator.evaluation)
        if evaluator is not None and evaluator.best is not None:
            totals.best = {"mean_return": evaluator.best.mean_return, "step": evaluator.best.step}

    def summary(self) -> TaskSummary:
        """The task's part of summary.json."""
        if self._final is not None:
            return self._final
        summary = self._present()
        if self._stream is not None:
            summary["stream"] = self._stream.summary()
        network = self._network.summary()
        if network["nodes"] > 1:
            summary["network"] = network
        return summary

    def _present(self) -> TaskSummary:
        group, totals = self._group, self._totals
        replay, learner = group.replay_status, group.learner_status
        lag = replay.policy_lag if replay else (None, None)
        return {
            "state": self._state(),
            "failure": None,
            "env_steps": totals.env_steps,
            "env_frames": totals.env_steps * group.plan.spec.frame_skip,
            "env_frames_per_s": self._frames.per_second,
            "learner_updates": totals.learner_updates,
            "learner_samples_per_s": self._samples.per_second,
            "learner_wait_share": learner.wait_share if learner else 0.0,
            "rollout_wait_share": replay.rollout_wait_share if replay else 0.0,
            "samples_per_insert": {
                "wanted": group.config.replay.samples_per_insert,
                "actual": replay.samples_per_insert if replay else None,
            },
            "policy_version": totals.policy_version,
            "policy_lag": {"p50": lag[0], "p95": lag[1]},
            "replay": {
                "transitions": replay.transitions if replay else 0,
                "bytes": replay.nbytes if replay else 0,
                "capacity": group.config.replay.capacity_transitions,
                "fill": replay.fill if replay else 0.0,
            },
            "loss": learner.loss if learner else None,
            "returns": totals.returns,
            "evaluation": totals.evaluation,
            "best": totals.best,
            "restarts": group.restarts,
            "skipped_batches": totals.skipped_batches,
        }

    def metrics(self) -> dict[str, float | None]:
        """The task's row of metrics: the summary's figures and those that only experts read."""
        replay, learner = self._group.replay_status, self._group.learner_status
        values = task_metrics(self.summary())
        values["worker_memory_bytes"] = self._group.memory_bytes
        values |= self._network.metrics()
        if replay is not None:
            values |= {
                "replay_age_p50": replay.replay_age[0],
                "replay_age_p95": replay.replay_age[1],
                "replay_bytes_per_transition": (
                    replay.nbytes / replay.transitions if replay.transitions else None
                ),
                "importance_beta": replay.importance_exponent,
                "epsilon_mean": replay.epsilon_mean,
                "episode_length_mean": replay.episode_length_mean,
            }
        if learner is not None:
            values |= {
                "td_error_abs_mean": learner.td_error_abs_mean,
                "q_mean": learner.q_mean,
                "gradient_norm": learner.gradient_norm,
                "learning_rate": learner.learning_rate,
                "publish_ms": learner.publish_ms,
                "checkpoint_s": learner.checkpoint_s,
                "uploaded_updates": learner.uploaded_updates,
                "request_age_s": learner.request_age_s,
                **learner.others,
            }
        if self._stream is not None:
            values |= self._stream.metrics()
        return values

    def _state(self) -> TaskState:
        replay, learner = self._group.replay_status, self._group.learner_status
        if self._group.is_empty:
            return "queued"
        if replay is None or learner is None:
            return "starting"
        if learner.paused:
            return "paused"
        if not replay.warm:
            return "warming_up"
        return "waiting" if learner.wait_share > _STARVED else "running"


def _returns(replay: ReplayStatus) -> Returns:
    last = list(replay.returns)
    return {
        "last": last,
        "mean": sum(last) / len(last) if last else None,
        "episodes": replay.episodes,
    }


def _evaluation(evaluation: Evaluation) -> EvaluationSummary:
    return {
        "episodes": evaluation.episodes,
        "mean_return": evaluation.mean_return,
        "std_return": evaluation.std_return,
        "random_mean_return": evaluation.random_mean_return,
        "human_normalized": evaluation.human_normalized,
        "policy_version": evaluation.policy_version,
        "env_steps": evaluation.env_steps,
    }
