"""The learner: one update after another, for ever, and a new policy version every so many.

Invariant: a step is whole or did not happen. Counters move only with the parameters; a batch that
is not finite is counted, its sources are named, and nothing else changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from rl_cluster.agents.captured import snapshot_in_host_memory
from rl_cluster.agents.dqn import DQN, DQNSettings, Transitions
from rl_cluster.agents.networks import QNetwork
from rl_cluster.agents.sac import Sequences
from rl_cluster.agents.update import PendingUpdate, SkippedBatch
from rl_cluster.checkpoint import Checkpoint
from rl_cluster.config import AgentConfig, LearnerConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.replay.gather import Batch
from rl_cluster.replay.index import Sample
from rl_cluster.replay.sequences import SequenceBatch

AnyBatch = Batch[Any] | SequenceBatch
Publish = Callable[[int, np.ndarray], None]
"""Takes a policy version and its (P,) float32 weights, which change with the next step: must copy
them, and must not block."""

_STEPS_AHEAD = 2
_SOURCES_NAMED = 3


class Agent(Protocol):
    """What learns: DQN, or soft actor-critic."""

    @property
    def published(self) -> torch.Tensor:
        """(P,) float32: the parameters that a policy needs."""

    def learning_rate(self, updates: int) -> float:
        """Step size after so many updates."""

    def change_learning_rate(self, rate: float) -> None:
        """Let the schedule go on from another step size."""

    def begin(self, batch: Any, updates: int) -> PendingUpdate:
        """Start the step that follows so many updates."""

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """All parameters by name, for a checkpoint."""

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """The optimizers' state by name, for a checkpoint."""

    def load_tensors(
        self, model: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]
    ) -> None:
        """Continue from a checkpoint; ValueError where it does not fit, and nothing was changed."""


class NothingLearned(ArithmeticError):
    """So many batches in a row were skipped that waiting for a better one is no use."""


@dataclass
class LearnerCounters:
    """What a learner has done, over all resumes."""

    updates: int = 0
    samples: int = 0
    skipped_batches: int = 0
    policy_version: int = -1


@dataclass(frozen=True)
class StepReport:
    """What one step found; `td_errors` is None where the batch was skipped."""

    sample: Sample
    td_errors: np.ndarray | None
    loss: float
    q_mean: float
    gradient_norm: float
    learning_rate: float
    skipped_because: str | None = None
    skipped_sources: tuple[str, ...] = ()
    spoiled: Sample | None = None
    """Where the values that are not finite came from: best never drawn again."""
    others: Mapping[str, float] = field(default_factory=dict)
    """What only this kind of agent tells, by name."""

    @property
    def skipped_cause(self) -> str:
        """Why it was skipped, and whose blocks it held: some by name."""
        some, others = self.skipped_sources[:_SOURCES_NAMED], self.skipped_sources[_SOURCES_NAMED:]
        more = f" and {len(others)} more" if others else ""
        return f"{self.skipped_because}; blocks of {', '.join(some)}{more}"


class Learner:
    """An agent, its counters, and the publication of its weights."""

    def __init__(
        self,
        agent: Agent,
        device: torch.device,
        publish_period: int,
        publish: Publish,
        schema: dict[str, Any],
    ) -> None:
        self.agent, self.schema = agent, schema
        self._publish_period, self._publish = publish_period, publish
        self.counters = LearnerCounters()
        self.skipped_in_a_row = 0
        """Batches since the last one that was learned from."""
        self._skip: StepReport | None = None
        self._updates_before = 0
        self.steps_ahead = _STEPS_AHEAD if device.type == "cuda" else 0
        self._under_way: deque[tuple[AnyBatch, PendingUpdate, float]] = deque()
        self._publication: tuple[torch.Tensor, Callable[[], None]] | None = None

    def step(self, batch: AnyBatch) -> list[StepReport]:
        """Learn from one batch; publish when the period is over.

        Returns:
          On a CPU, what this step found. On a GPU, which is kept busy by a few steps ahead, what
          an earlier one found, or nothing yet.
        """
        begun = self.counters.updates + len(self._under_way)
        rate = self.agent.learning_rate(begun)
        if not (finite := batch.finite_rows()).all():
            reason, spoiled = "the batch holds values that are not finite", batch.sample.at(~finite)
            return [self._skipped(batch, reason, rate, spoiled)]
        self._under_way.append((batch, self.agent.begin(_tensors(batch), begun), rate))
        return self.finish(self.steps_ahead)

    def change(self, config: LearnerConfig) -> None:
        """Take `learning_rate` and `publish_period` from here on; steps under way keep theirs.

        The schedule goes on from the new learning rate. Everything else is as it was built.
        """
        self.agent.change_learning_rate(config.learning_rate)
        self._publish_period = config.publish_period

    def check_learns(self, most_skipped: int) -> None:
        """Raise NothingLearned where so many batches in a row were skipped."""
        if self._skip is None or self.skipped_in_a_row < most_skipped:
            return
        diverged = "training has diverged: lower learner.learning_rate"
        raise NothingLearned(
            f"the last {self.skipped_in_a_row} batches were skipped (learner.max_skipped_batches), "
            f"the newest because: {self._skip.skipped_cause}: "
            f"{diverged if self._skip.spoiled is None else 'mend what gives such values'}"
        )

    @property
    def in_vain(self) -> bool:
        """Whether it skipped more batches at last than it learned from since it was made."""
        return self.skipped_in_a_row > self.counters.updates - self._updates_before

    def finish(self, steps_ahead: int = 0) -> list[StepReport]:
        """Wait for steps until only so many are under way; return what they found."""
        self._finish_publication()
        reports = []
        while len(self._under_way) > steps_ahead:
            reports.append(self._finished(*self._under_way.popleft()))
        return reports

    def publish(self) -> None:
        """Give the present weights the next version."""
        self.counters.policy_version += 1
        self._publication = snapshot_in_host_memory(self.agent.published)
        if not self._under_way:
            self._finish_publication()

    def _finish_publication(self) -> None:
        if self._publication is not None:
            vector, wait = self._publication
            self._publication = None
            wait()
            self._publish(self.counters.policy_version, vector.numpy())

    def _finished(self, batch: AnyBatch, pending: PendingUpdate, rate: float) -> StepReport:
        counters = self.counters
        try:
            found = pending.result()
        except SkippedBatch as reason:
            return self._skipped(batch, str(reason), rate)
        self.skipped_in_a_row = 0
        counters.updates += 1
        counters.samples += batch.transitions
        if counters.updates % self._publish_period == 0:
            self.publish()
        return StepReport(
            batch.sample,
            found.td_errors.numpy(),
            found.loss,
            found.q_mean,
            found.gradient_norm,
            rate,
            others=found.others,
        )

    def _skipped(
        self, batch: AnyBatch, reason: str, rate: float, spoiled: Sample | None = None
    ) -> StepReport:
        self.counters.skipped_batches += 1
        self.skipped_in_a_row += 1
        sources, unknown = tuple(sorted(set(batch.sources))), (np.nan, np.nan, np.nan)
        self._skip = StepReport(batch.sample, None, *unknown, rate, reason, sources, spoiled)
        return self._skip

    def checkpoint(
        self, extra: dict[str, Any], replay: Mapping[str, torch.Tensor] | None = None
    ) -> Checkpoint:
        """Everything that a resume needs, between two steps (`finish` first).

        Args:
          extra: the caller's part of the JSON state.
          replay: the caller's tensors, named `replay.…`; `restore` leaves them to the caller.
        """
        state = {**extra, "learner": vars(self.counters).copy()}
        return Checkpoint(
            self.counters.updates,
            self.agent.model_tensors(),
            {
                **self.agent.optimizer_tensors(),
                "random.torch": torch.get_rng_state(),
                **(replay or {}),
            },
            state,
            self.schema,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
          ValueError: it holds another architecture; nothing was changed.
        """
        optimizer = {
            name: tensor
            for name, tensor in checkpoint.optimizer.items()
            if not name.startswith("replay.")
        }
        random_state = optimizer.pop("random.torch")
        self.agent.load_tensors(dict(checkpoint.model), optimizer)
        torch.set_rng_state(random_state)
        self.counters = LearnerCounters(**checkpoint.state["learner"])
        self._updates_before = self.counters.updates


def _tensors(batch: AnyBatch) -> Transitions | Sequences:
    """The batch where it lies, in host memory or on the device; nothing is copied yet."""
    batch.wait()
    if isinstance(batch, SequenceBatch):
        return Sequences(
            torch.from_numpy(batch.observations),
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.rewards),
            torch.from_numpy(batch.terminal),
            torch.from_numpy(batch.ends),
            torch.from_numpy(batch.valid),
            torch.from_numpy(batch.weights),
        )
    return Transitions(
        torch.as_tensor(batch.s_tm1),
        torch.from_numpy(batch.a_tm1),
        torch.from_numpy(batch.r_t),
        torch.from_numpy(batch.discount_t),
        torch.as_tensor(batch.s_t),
        torch.from_numpy(batch.weights),
    )


def build_network(agent: AgentConfig, spec: EnvironmentSpec) -> QNetwork:
    """The Q network of a task."""
    return QNetwork(
        (agent.frame_stack, *spec.obs_shape),
        spec.num_actions,
        conv_channels=agent.conv_channels,
        hidden=agent.hidden,
        dueling=agent.dueling,
    )


def build_agent(
    agent: AgentConfig, learner: LearnerConfig, spec: EnvironmentSpec, device: torch.device
) -> DQN:
    """Networks and optimizer on a device; parameters follow torch's seed.

    Raises:
      torch.OutOfMemoryError: the device is full.
    """
    settings = DQNSettings(
        agent.double,
        agent.huber_delta,
        learner.learning_rate,
        learner.schedule,
        learner.schedule_updates,
        learner.schedule_factor,
        learner.adam_epsilon,
        learner.max_gradient_norm,
        learner.precision == "bfloat16",
        learner.target,
        learner.target_period,
        learner.target_tau,
    )
    online = build_network(agent, spec).to(device)
    threads = max(1, learner.threads) if device.type == "cpu" else 1
    target = build_network(agent, spec).to(device)
    return DQN(online, target, settings, threads, learner.micro_batch)


def checkpoint_schema(agent: AgentConfig, spec: EnvironmentSpec) -> dict[str, Any]:
    """What a checkpoint must agree in to fit a task."""
    return {
        "observation": [agent.frame_stack, *spec.obs_shape],
        "observation_dtype": spec.obs_dtype.name,
        "actions": spec.num_actions,
        "conv_channels": list(agent.conv_channels),
        "hidden": agent.hidden,
        "dueling": agent.dueling,
    }
