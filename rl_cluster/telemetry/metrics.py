"""The table of metrics: every figure that a run writes, with its unit and how to read it.

Invariant: a name stands here exactly once, and no writer accepts a name that does not.
The page docs/metrics.md is this table, printed by `python -m rl_cluster.telemetry.metrics`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure of a run.

    A gauge may go up and down. A counter grows, also over resumes, but goes back to the newest
    checkpoint's where work was lost.
    """

    name: str
    unit: str
    kind: Literal["gauge", "counter"]
    scope: Literal["task", "run"]
    group: str
    """Section of the page, and first part of the tag in TensorBoard and W&B."""
    meaning: str
    how_to_read: str

    @property
    def tag(self) -> str:
        """Name in TensorBoard and W&B, which sort charts by what stands before the slash."""
        return f"{self.group}/{self.name}"

    @property
    def description(self) -> str:
        """One line for systems that show a text beside a figure, such as Ray's metrics."""
        return f"{self.meaning} Unit: {self.unit}."


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "env_steps", "env steps", "counter", "task", "progress",
            "Steps taken in all environments of the task.",
            "One step is one action. After a resume it goes on from the checkpoint.",
        ),
        Metric(
            "env_frames", "env frames", "counter", "task", "progress",
            "Frames the game's emulator showed: env_steps times the frame skip (4 for Atari).",
            "The x-axis of every learning curve, and the unit in which papers count: 200 million.",
        ),
        Metric(
            "learner_updates", "updates", "counter", "task", "progress",
            "Gradient steps taken; skipped batches are not counted.",
            "Flat while env_steps grows: the learner waits or is stuck; see learner_wait_share.",
        ),
        Metric(
            "policy_version", "versions", "counter", "task", "progress",
            "Newest policy published by the learner.",
            "Grows by one at each publication; flat means that the rollouts play an old policy.",
        ),
        Metric(
            "episodes", "episodes", "counter", "task", "progress",
            "Whole games finished in training; a lost life is none.",
            "The number of samples behind return_mean.",
        ),
        Metric(
            "env_frames_per_s", "env frames/s", "gauge", "task", "speed",
            "Frames collected per second since the row before.",
            "Compare only within one run or machine. Zero with rollout_wait_share near 1: the "
            "samples-per-insert rule holds the rollouts back.",
        ),
        Metric(
            "learner_samples_per_s", "transitions/s", "gauge", "task", "speed",
            "Transitions learned from per second since the row before.",
            "Updates per second times the batch. About env_frames_per_s / frame skip x "
            "samples_per_insert_wanted when neither side waits for long.",
        ),
        Metric(
            "learner_wait_share", "share, 0 to 1", "gauge", "task", "speed",
            "Share of the learner's time spent waiting for batches.",
            "Near 1: collection is the bottleneck, or data stopped arriving.",
        ),
        Metric(
            "request_age_s", "s", "gauge", "task", "speed",
            "How long the learner has been asking for the batch that it waits for.",
            "Under a second while batches come; null while paused. Growth: no data arrives; past "
            "supervisor.working_timeout_s with idle rollouts, replay is replaced.",
        ),
        Metric(
            "rollout_wait_share", "share, 0 to 1", "gauge", "task", "speed",
            "Share of the rollouts' time spent waiting to be allowed to insert.",
            "Near 1: learning is the bottleneck. Both shares high: something else is.",
        ),
        Metric(
            "stream_messages_per_s", "messages/s", "gauge", "task", "stream",
            "Messages of a fleet's rovers that were read per second.",
            "About one every two seconds and rover at 30 Hz. 0: see stream_newest_age_s.",
        ),
        Metric(
            "stream_newest_age_s", "s", "gauge", "task", "stream",
            "Time since the newest message that was read was published.",
            "Grows while the fleet is silent or the server is away; an incident says which.",
        ),
        Metric(
            "stream_quarantined", "messages", "counter", "task", "stream",
            "Messages that could not be read, kept aside with the reason.",
            "Anything above 0: look at the stream ROVER_QUARANTINE.",
        ),
        Metric(
            "rovers", "rovers", "gauge", "task", "stream",
            "Rovers that were heard of since the reader began.",
            "Rovers that send no name count as one.",
        ),
        Metric(
            "sent_version", "version", "counter", "task", "stream",
            "Newest policy that rovers were told of.",
            "Only grows. Flat: the gate holds policies back, or the server is away.",
        ),
        Metric(
            "actor_loss", "return", "gauge", "task", "learning",
            "Loss of the policy of soft actor-critic: alpha log pi - Q, over the newest batch.",
            "Falls while values grow; it is no measure of how good the policy is.",
        ),
        Metric(
            "alpha", "return per nat", "gauge", "task", "learning",
            "Temperature of soft actor-critic: what a nat of entropy is worth.",
            "Falls as the policy becomes sure. Growing without end: rewards are too small for it.",
        ),
        Metric(
            "entropy", "nats", "gauge", "task", "learning",
            "Entropy of the policy's actions, over the newest batch.",
            "Settles at sac.target_entropy.",
        ),
        Metric(
            "publish_ms", "ms", "gauge", "task", "speed",
            "What publishing the newest policy took of the learner's time: one copy.",
            "A few ms for each 10 MB. Far more: the object store or the machine is overloaded.",
        ),
        Metric(
            "checkpoint_s", "s", "gauge", "task", "speed",
            "Time the newest checkpoint took, sums and rename included.",
            "Should stay far below the checkpoint period; growth points at a slow or full disk.",
        ),
        Metric(
            "samples_per_insert_wanted", "samples/insert", "gauge", "task", "replay",
            "Samples per inserted transition that the configuration asks for.",
            "Constant, unless a tier changes it.",
        ),
        Metric(
            "samples_per_insert_actual", "samples/insert", "gauge", "task", "replay",
            "Samples drawn for each transition inserted since learning began; of a sequence, all "
            "steps to train, those that its block does not have included.",
            "Within 5 % of the wanted value once learning has begun. Otherwise one side is stuck. "
            "A fleet may lie below: rovers are never held back.",
        ),
        Metric(
            "replay_transitions", "transitions", "gauge", "task", "replay",
            "Transitions that can be sampled now.",
            "Grows towards the capacity: ends of episodes take rows, and short blocks take whole "
            "places.",
        ),
        Metric(
            "replay_fill", "share, 0 to 1", "gauge", "task", "replay",
            "Share of the places for blocks that hold one.",
            "1 when full; from then on the oldest block leaves as a new one arrives.",
        ),
        Metric(
            "replay_bytes", "bytes", "gauge", "task", "replay",
            "Object store bytes of the blocks that replay holds.",
            "Flat once replay is full. Growth after that is a leak.",
        ),
        Metric(
            "replay_bytes_per_transition", "bytes/transition", "gauge", "task", "replay",
            "replay_bytes divided by replay_transitions: measured, not estimated.",
            "About 8,400 for Atari with blocks of 32 steps, 7,700 with 64: one 84 x 84 frame a "
            "step, and the rows that blocks repeat.",
        ),
        Metric(
            "replay_age_p50", "env steps", "gauge", "task", "replay",
            "Median age of sampled transitions: env steps of the task since their insertion.",
            "About half the capacity for a full replay sampled evenly; priorities lower it.",
        ),
        Metric(
            "replay_age_p95", "env steps", "gauge", "task", "replay",
            "95th percentile of that age.",
            "Near the capacity when replay is full. More than the capacity: eviction is stuck.",
        ),
        Metric(
            "policy_lag_p50", "versions", "gauge", "task", "replay",
            "Median, over inserted transitions, of the newest published version minus the version "
            "that acted.",
            "0 to 2 is normal. Growth: rollouts fetch weights too seldom, or blocks wait too long.",
        ),
        Metric(
            "policy_lag_p95", "versions", "gauge", "task", "replay",
            "95th percentile of that lag.",
            "Far above the median: a single rollout is stuck with an old policy.",
        ),
        Metric(
            "nodes", "nodes", "gauge", "task", "network",
            "Nodes that the task's workers are on.",
            "1: nothing crosses the network. Fewer than there are: see cluster.rollout_labels.",
        ),
        Metric(
            "network_block_bytes_per_s", "bytes/s", "gauge", "task", "network",
            "Blocks that come to replay from other nodes, packed.",
            "Some 100 times less than network_unpacked_bytes_per_s for Atari.",
        ),
        Metric(
            "network_unpacked_bytes_per_s", "bytes/s", "gauge", "task", "network",
            "The same blocks as they lie in the object store.",
            "What would cross the network without packing.",
        ),
        Metric(
            "network_weights_bytes_per_s", "bytes/s", "gauge", "task", "network",
            "Weights that rollouts on other nodes take.",
            "An upper bound: rollouts of one node share a copy. A larger "
            "learner.publish_period, in updates, lowers it.",
        ),
        Metric(
            "loss", "loss", "gauge", "task", "learning",
            "Importance-weighted Huber loss of the newest update.",
            "Need not fall: targets move and priorities pick what is hard. A steep, lasting rise "
            "is divergence.",
        ),
        Metric(
            "td_error_abs_mean", "return", "gauge", "task", "learning",
            "Mean absolute TD error of the newest batch, before weights.",
            "Read it beside q_mean: an error as large as the values means that nothing is learned.",
        ),
        Metric(
            "q_mean", "return", "gauge", "task", "learning",
            "Mean value Q(s, a) of the actions taken, in clipped, discounted rewards.",
            "Should approach the discounted return. Beyond the possible: overestimation.",
        ),
        Metric(
            "gradient_norm", "norm", "gauge", "task", "learning",
            "Global L2 norm of the gradient before clipping.",
            "Always above the clipping norm: lower the learning rate. Near zero: dead units.",
        ),
        Metric(
            "learning_rate", "1", "gauge", "task", "learning",
            "The optimizer's step size now.",
            "Follows the schedule; a resume goes on where it was.",
        ),
        Metric(
            "importance_beta", "1", "gauge", "task", "learning",
            "Exponent of the importance weights (Schaul et al. 2016, section 3.4).",
            "Rises linearly from its start to 1.",
        ),
        Metric(
            "epsilon_mean", "share, 0 to 1", "gauge", "task", "learning",
            "Mean share of random actions over the task's environments, of the last 16 reports.",
            "Falls from 1 to the mean of the ladder (Horgan et al. 2018).",
        ),
        Metric(
            "skipped_batches", "batches", "counter", "task", "learning",
            "Batches left out because data, loss or gradient was not finite.",
            "0. Anything else has an incident that names the blocks' source.",
        ),
        Metric(
            "return_mean", "game score", "gauge", "task", "returns",
            "Mean return of the last 20 training games: whole games, rewards not clipped.",
            "Lower than the evaluation's, because of exploration. Compare with "
            "evaluation_random_mean_return.",
        ),
        Metric(
            "episode_length_mean", "env steps", "gauge", "task", "returns",
            "Mean length of the same 20 games.",
            "In Pong, longer games are the first sign of learning.",
        ),
        Metric(
            "evaluation_mean_return", "game score", "gauge", "task", "returns",
            "Mean return of the newest evaluation: whole games, fixed seeds, evaluation.epsilon of "
            "random actions.",
            "The figure to quote, with the number of games and their spread.",
        ),
        Metric(
            "evaluation_random_mean_return", "game score", "gauge", "task", "returns",
            "Mean return of the random policy under the same protocol and seeds.",
            "The line to be above. Below it is an incident.",
        ),
        Metric(
            "evaluation_human_normalized", "share of human", "gauge", "task", "returns",
            "(evaluation - random) / (human - random), with the published scores of both.",
            "0 is random, 1 is human. Missing for games outside the table.",
        ),
        Metric(
            "best_mean_return", "game score", "gauge", "task", "returns",
            "Best evaluation so far, over all sessions of the run.",
            "Never falls; the checkpoint called `best` holds that policy.",
        ),
        Metric(
            "worker_memory_bytes", "bytes", "gauge", "task", "health",
            "Resident memory of the task's workers; pages that they share count for each.",
            "Flat once replay is full. Steady growth is a leak: restart the worker that grows.",
        ),
        Metric(
            "uploaded_updates", "updates", "gauge", "task", "health",
            "Learner updates of the newest checkpoint that is whole at `checkpoint.upload`, too.",
            "Some checkpoints behind `learner_updates`; what stays behind has failing uploads.",
        ),
        Metric(
            "restarts", "restarts", "counter", "task", "health",
            "Workers of the task that were replaced.",
            "0 in a quiet run. Each has a line in incidents.jsonl.",
        ),
        Metric(
            "incidents", "incidents", "counter", "run", "health",
            "Lines in incidents.jsonl.",
            "0 in a quiet run. Any growth is worth a look at the file.",
        ),
        Metric(
            "object_store_bytes", "bytes", "gauge", "run", "health",
            "Bytes in use in Ray's object store on the supervisor's node, where every replay is.",
            "Flat once every replay is full.",
        ),
        Metric(
            "host_memory_used_bytes", "bytes", "gauge", "run", "health",
            "Memory in use, by everybody, on the supervisor's host, or in its control group where "
            "that has less left of its limit.",
            "Close to the limit: the host is about to kill something.",
        ),
        Metric(
            "run_memory_bytes", "bytes", "gauge", "run", "health",
            "Private memory of Ray's raylet on the supervisor's node and of all that it started "
            "there, the object store left out; on a cluster of others, their workers, too.",
            "Flat once every replay is full. Growth after that is a leak.",
        ),
        Metric(
            "wall_s", "s", "counter", "run", "health",
            "Seconds that the run has been at work, all its sessions together.",
            "Time between a stop and its resume is not counted: set it against the hours since "
            "the start for the share of time that was used.",
        ),
    )
}  # fmt: skip


def metric_named(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    try:
        return METRICS[name]
    except KeyError:
        near = difflib.get_close_matches(name, METRICS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "docs/metrics.md lists all"
        raise ValueError(
            f"unknown metric {name!r}: {hint} (a new one is added to rl_cluster/telemetry/"
            "metrics.py first)"
        ) from None


def render_markdown() -> str:
    """Return the text of docs/metrics.md."""
    return "\n".join([*_INTRODUCTION, *_sections(), ""])


_INTRODUCTION = (
    "# Metrics",
    "",
    "Generated from `rl_cluster/telemetry/metrics.py` by "
    "`python -m rl_cluster.telemetry.metrics > docs/metrics.md`; a test holds the two equal.",
    "",
    "Every row of `metrics.jsonl` has `time` (Unix seconds), `wall_s`, `task` (null for figures of "
    "the whole run) and `env_steps`, and beside them the metrics below by name; what is unknown or "
    "not finite is null. TensorBoard and W&B show a metric as `section/name`, a task's against "
    "`env_frames`. A gauge may go up and down; a counter grows, but goes back to the newest "
    "checkpoint's where work was lost (not at Prometheus, where it stands still until passed).",
)


def _sections() -> Iterator[str]:
    for group in dict.fromkeys(metric.group for metric in METRICS.values()):
        yield from ("", f"## {group.capitalize()}", "")
        yield "| name | unit | kind | of a | meaning | how to read it |"
        yield "|---|---|---|---|---|---|"
        for metric in (each for each in METRICS.values() if each.group == group):
            yield (
                f"| `{metric.name}` | {metric.unit} | {metric.kind} | {metric.scope} | "
                f"{metric.meaning} | {metric.how_to_read} |"
            )


if __name__ == "__main__":
    print(render_markdown(), end="")
