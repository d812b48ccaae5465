"""What travels between actors: plain records, so that both ends agree by type.

Invariant: a record holds numbers, numpy arrays and object references only; observations travel as
blocks in the object store and never inside a record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rl_cluster.cluster.actors import Ref
from rl_cluster.cluster.parcels import Network
from rl_cluster.evaluation import Best, Evaluation
from rl_cluster.replay.index import Sample

BlockRef = Ref
"""Reference to a `Block`, owned by the replay actor that called for it."""


@dataclass(frozen=True)
class SampleRequest:
    """The learner's call: what it has, what it found, what it wants."""

    known_arrival: int
    """Newest arrival that it has been told of; -1: none."""
    policy_version: int
    """Newest version that it has published."""
    learner_updates: int
    batches: int
    td_errors: tuple[tuple[Sample, np.ndarray], ...]
    """Results of earlier samples, for their priorities."""


@dataclass(frozen=True)
class SampleReply:
    """The replay's answer."""

    samples: tuple[Sample, ...]
    """As many as the ratio allows now, at most as many as asked for."""
    new_blocks: tuple[tuple[int, int, BlockRef], ...]
    """Arrival, block id and reference of blocks that came after `known_arrival`, in that order.
    Blocks that come back from the journal arrive after newer ones."""
    oldest_block_id: int
    """Blocks below it are gone and never come: let go of their views. It only grows."""
    env_steps: int


@dataclass(frozen=True)
class ReplayState:
    """What a checkpoint keeps of a replay whose blocks are in the journal."""

    counters: dict[str, Any]
    """JSON: counters, random draws, last returns."""
    block_ids: np.ndarray
    """(k,) int64: blocks with known priorities."""
    priorities: np.ndarray
    """(k, length) float32, of their core rows."""


@dataclass(frozen=True)
class ReplayStatus:
    """What the replay actor reports."""

    attached: bool
    """The learner has told it where its task stands."""
    env_steps: int
    transitions: int
    nbytes: int
    fill: float
    warm: bool
    samples_per_insert: float | None
    policy_lag: tuple[float | None, float | None]
    """p50 and p95, versions."""
    replay_age: tuple[float | None, float | None]
    """p50 and p95, environment steps."""
    importance_exponent: float
    epsilon_mean: float | None
    returns: tuple[float, ...]
    """True returns of the last 20 whole games."""
    episode_length_mean: float | None
    episodes: int
    rollout_wait_share: float
    failed_rollouts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name to life and cause, of rollouts whose calls fail; a report can outlive the rollout."""
    journal_state: Literal["off", "writing", "paused", "restoring"] = "off"
    journal_blocks: int = 0
    """Block ids between the oldest on disk and the newest."""
    journal_bytes: int = 0
    restored_blocks: int = 0
    """Blocks that came back from the journal since the start."""
    lacking_blocks: int = 0
    """Blocks that the journal had to skip since the start."""
    doubles: int = 0
    """Blocks from outside that came again since the start, and were taken once."""
    network: Network = field(default_factory=Network)
    notices: tuple[dict[str, str], ...] = ()
    """Incidents since the last report: kind, cause, action, detail."""


@dataclass(frozen=True)
class LearnerStatus:
    """What the learner reports."""

    updates: int
    samples: int
    skipped_batches: int
    policy_version: int
    paused: bool
    loss: float | None
    td_error_abs_mean: float | None
    q_mean: float | None
    gradient_norm: float | None
    learning_rate: float | None
    wait_share: float
    publish_ms: float | None
    checkpoint_s: float | None
    uploaded_updates: int | None
    """Of the newest checkpoint that is whole elsewhere, too."""
    request_age_s: float | None
    """How long it has been asking for the next batch, 0 where that is here; None: it rests."""
    others: dict[str, float] = field(default_factory=dict)
    """What only this kind of agent tells of its newest step, by name."""
    notices: tuple[dict[str, str], ...] = ()
    """Incidents since the last report: kind, cause, action, detail."""


@dataclass(frozen=True)
class StopReport:
    """How a learner left its loop."""

    status: LearnerStatus
    saved: bool


@dataclass(frozen=True)
class Candidate:
    """A checkpoint kept for evaluation."""

    path: str
    step: int
    best: Best | None
    """Best evaluation that the learner knows of."""


@dataclass(frozen=True)
class EvaluatorStatus:
    """What the evaluator reports."""

    evaluation: Evaluation | None
    best: Best | None
    notices: tuple[dict[str, str], ...] = ()


class RunClock:
    """Time at work, over all sessions of a run; a clock that is set anew does not move it."""

    def __init__(self, before_s: float) -> None:
        """Go on from `before_s` seconds."""
        self._before_s, self._since_s = before_s, time.monotonic()

    def wall_s(self) -> float:
        """Seconds of all sessions."""
        return self._before_s + time.monotonic() - self._since_s


def percentiles(values: np.ndarray) -> tuple[float | None, float | None]:
    """p50 and p95 of (k,) values; None where there are none."""
    if not len(values):
        return None, None
    p50, p95 = np.percentile(values, (50, 95))
    return float(p50), float(p95)


def notice(
    kind: str, cause: str, action: str, detail: Any = "", nature: str = ""
) -> dict[str, str]:
    """An incident as its worker words it; the supervisor adds time, task and name.

    `nature` tells one cause of a trouble that recurs from another, whatever figures they name.
    """
    said = {"kind": kind, "cause": cause, "action": action, "detail": str(detail)}
    return said | {"nature": nature}
