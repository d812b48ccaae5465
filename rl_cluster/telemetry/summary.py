"""The state of a run as one JSON object, RUN/summary.json: what scripts and people read.

Invariant: the file is always a whole, valid summary. It is written beside and renamed, so that a
reader never sees half of one, and checked before, so that no key is ever missing. Keys are added,
never renamed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rl_cluster.disk import write_text_atomically
from rl_cluster.telemetry.jsonl import strict

FILE_NAME = "summary.json"

RunState = Literal["running", "completed", "interrupted", "failed"]
TaskState = Literal[
    "queued", "starting", "warming_up", "running", "paused", "waiting", "completed", "failed"
]  # fmt: skip


class Tier(TypedDict):
    """How much of the machine the run may use."""

    requested: str
    effective: str


class SamplesPerInsert(TypedDict):
    """Transitions learned from for each one collected."""

    wanted: float
    actual: float | None
    """None before learning begins."""


class PolicyLag(TypedDict):
    """Versions between the newest policy and the one that acted; None before the first block."""

    p50: float | None
    p95: float | None


class Replay(TypedDict):
    """What replay holds."""

    transitions: int
    bytes: int
    capacity: int
    """Transitions."""
    fill: float
    """Share of the places for blocks in use, 0 to 1."""


class Returns(TypedDict):
    """True returns of whole training games."""

    last: list[float]
    """At most 20, the newest last."""
    mean: float | None
    """Mean of `last`; None before the first game has ended."""
    episodes: int
    """Games finished since the run began."""


class Evaluation(TypedDict):
    """The newest evaluation."""

    episodes: int
    mean_return: float
    std_return: float
    random_mean_return: float
    human_normalized: float | None
    """0 is random, 1 is human; None for games outside the published table."""
    policy_version: int
    env_steps: int
    """Steps trained when the evaluated policy was published."""


class Best(TypedDict):
    """The best evaluation so far."""

    mean_return: float
    step: int
    """Learner updates, which name its checkpoint."""


class Rover(TypedDict):
    """One rover of a fleet."""

    policy_version: int | None
    """As it last said; -1: none yet; None: it does not say."""
    last_seen_age_s: float
    mean_return: float | None
    """Of its last 20 training episodes at most."""
    episodes: int


class Stream(TypedDict):
    """Experience from outside; counts are since the reader began."""

    url: str | None
    """None while the server is not known."""
    connected: bool
    trouble: str
    """Why nothing comes; empty: no message was published."""
    messages: int
    messages_per_s: float
    newest_age_s: float | None
    """Since the newest message was published; None before the first."""
    silent_s: float | None
    quarantined: int
    doubles: int
    """Blocks that came again, and were taken once."""
    sent_version: int | None
    """Newest policy that rovers were told of."""
    held_back: int
    """Policies that the gate kept."""
    rovers: dict[str, Rover]


class Network(TypedDict):
    """What a task's workers send each other between nodes."""

    nodes: int
    """That they are on."""
    block_bytes_per_s: float
    """Blocks that come in, packed."""
    unpacked_bytes_per_s: float
    """The same blocks, unpacked."""
    weights_bytes_per_s: float
    """Weights that go out, once for each rollout: at most so many, since those of a node share."""


class TaskSummary(TypedDict):
    """One task of a run."""

    state: TaskState
    failure: str | None
    """Why the task is parked; None otherwise."""
    env_steps: int
    env_frames: int
    env_frames_per_s: float
    learner_updates: int
    learner_samples_per_s: float
    learner_wait_share: float
    """0 to 1."""
    rollout_wait_share: float
    """0 to 1."""
    samples_per_insert: SamplesPerInsert
    policy_version: int
    policy_lag: PolicyLag
    replay: Replay
    loss: float | None
    returns: Returns
    evaluation: Evaluation | None
    best: Best | None
    restarts: int
    skipped_batches: int
    stream: NotRequired[Stream]
    """Of fleets."""
    network: NotRequired[Network]
    """Of tasks whose workers are on several nodes."""


class Summary(TypedDict):
    """The whole of summary.json."""

    run: str
    state: RunState
    updated_at: float
    """Unix seconds at which this was written."""
    wall_s: float
    """Seconds at work, over all sessions of the run."""
    max_seconds: float | None
    tier: Tier
    incidents: int
    object_store_bytes: int | None
    tasks: dict[str, TaskSummary]


_ADAPTER = TypeAdapter(Summary)


class SummaryError(ValueError):
    """A summary that lacks a key or holds a wrong value; the message names the place."""


def check_valid(summary: Any, origin: str = "summary") -> None:
    """Check keys, types and states; a figure that is not finite counts as null.

    Keys that are not known here are let pass: a newer version may have added them.

    Raises:
      SummaryError: names every wrong place.
    """
    try:
        _ADAPTER.validate_python(strict(summary), strict=True)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise SummaryError(f"{origin} is not valid: {faults}") from error


def write_summary(run_dir: Path, summary: Summary) -> None:
    """Write RUN/summary.json in one step; a reader sees the old one or this one.

    Figures that are not finite become null where null is allowed.

    Raises:
      SummaryError: a key is missing or a value is wrong; the old file stays.
      OSError: the disk is full or gone; the old file stays.
    """
    cleaned = strict(summary)
    check_valid(cleaned)
    text = json.dumps(cleaned, allow_nan=False, ensure_ascii=False, indent=1)
    write_text_atomically(run_dir / FILE_NAME, text + "\n")


def read_summary(run_dir: Path) -> Summary:
    """Read RUN/summary.json.

    Raises:
      FileNotFoundError: the run has not written one, or this is no run.
      SummaryError: the file is not a valid summary.
    """
    path = run_dir / FILE_NAME
    try:
        summary: Summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: {run_dir} is no run directory, or its run has not started yet"
        ) from None
    except ValueError as error:
        raise SummaryError(f"{path} is not JSON: {error}") from error
    check_valid(summary, str(path))
    return summary


def is_stale(summary: Summary, now_s: float, after_s: float = 60.0) -> bool:
    """Say whether a summary claims to be running, but has not been written for `after_s` seconds.

    Then the run died without a word (kill -9, a reboot) or its supervisor hangs.

    Args:
      now_s: Unix seconds.
    """
    return summary["state"] == "running" and now_s - summary["updated_at"] > after_s


def failures_of(summary: Summary) -> str:
    """Why tasks are parked, each with its name; empty where none is."""
    return "; ".join(
        f"{name}: {task['failure']}" for name, task in summary["tasks"].items() if task["failure"]
    )


def task_metrics(task: TaskSummary) -> dict[str, float | None]:
    """Return a task's figures under their names in the table of metrics."""
    evaluation, best = task["evaluation"], task["best"]
    return {
        "env_steps": task["env_steps"],
        "env_frames": task["env_frames"],
        "env_frames_per_s": task["env_frames_per_s"],
        "learner_updates": task["learner_updates"],
        "learner_samples_per_s": task["learner_samples_per_s"],
        "learner_wait_share": task["learner_wait_share"],
        "rollout_wait_share": task["rollout_wait_share"],
        "samples_per_insert_wanted": task["samples_per_insert"]["wanted"],
        "samples_per_insert_actual": task["samples_per_insert"]["actual"],
        "policy_version": task["policy_version"],
        "policy_lag_p50": task["policy_lag"]["p50"],
        "policy_lag_p95": task["policy_lag"]["p95"],
        "replay_transitions": task["replay"]["transitions"],
        "replay_bytes": task["replay"]["bytes"],
        "replay_fill": task["replay"]["fill"],
        "loss": task["loss"],
        "return_mean": task["returns"]["mean"],
        "episodes": task["returns"]["episodes"],
        "evaluation_mean_return": evaluation and evaluation["mean_return"],
        "evaluation_random_mean_return": evaluation and evaluation["random_mean_return"],
        "evaluation_human_normalized": evaluation and evaluation["human_normalized"],
        "best_mean_return": best and best["mean_return"],
        "restarts": task["restarts"],
        "skipped_batches": task["skipped_batches"],
    }
