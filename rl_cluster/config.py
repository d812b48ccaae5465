"""The configuration of a run: one tree of frozen dataclasses, every setting with its meaning.

Invariant: types say what a setting may be, `check_valid` says how settings must agree; nothing here
reads or writes files (`config_file.py` does).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from rl_cluster.config_load import LoadConfig as LoadConfig
from rl_cluster.config_load import PressureConfig as PressureConfig
from rl_cluster.config_load import TierConfig as TierConfig
from rl_cluster.config_rovers import SACConfig, StreamConfig
from rl_cluster.settings import ConfigError as ConfigError
from rl_cluster.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Precision,
    Settings,
    Share,
    Switch,
)

_TASK_NAME = re.compile(r"[\w-]+")
_LABEL = re.compile(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(rf"([a-z0-9.-]+/)?{_LABEL.pattern}")
_NOT_RESERVED = ("GPU", "object_store_memory", "bundle")
_TAKEN = ("tensorboard", "wandb", "lock", "control")  # names in a run directory


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig(Settings):
    """What is played."""

    entry: str = "envs.atari:make"
    """`module:function` that makes the vector environment."""
    name: str = ""
    """The game's usual name (`Pong`); empty: the task's name."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the entry: for Atari `protocol`, `backend`, `options`."""


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Settings):
    """The actors that step environments."""

    actors: PositiveInt = 1
    """Rollout actors of this task."""
    environments: PositiveInt = 16
    """Environments in each actor."""
    inference_batch: PositiveInt = 8
    """Environments in one forward pass; fewer than `environments` keeps the rest stepping."""
    env_threads: NonNegativeInt = 0
    """Threads that step one actor's environments; 0: this task's share of the cores."""
    torch_threads: PositiveInt = 1
    """Threads of one forward pass."""
    block_length: PositiveInt = 32
    """Steps that start transitions in one block."""
    blocks_per_collect: PositiveInt = 2
    """Blocks that one call brings back."""
    epsilon_base: Share = 0.4
    """ε of the most exploring environment (Ape-X, Horgan et al. 2018)."""
    epsilon_alpha: NonNegativeFloat = 7.0
    """ε_i = base ** (1 + α i / (N - 1)), over all N environments of the task."""
    exploration_env_steps: NonNegativeInt = 20_000
    """ε falls linearly from 1 to the ladder over this many environment steps after warm-up."""
    precision: Precision = "bfloat16"
    """Arithmetic of the forward pass."""


@dataclasses.dataclass(frozen=True)
class ReplayConfig(Settings):
    """Experience kept for learning."""

    capacity_transitions: PositiveInt = 100_000
    """Room for so many, in places of a block each; the oldest block goes first. An episode's end
    takes a row and starts no transition, and a fleet's short piece takes a whole place, so fewer
    are held: replay_transitions counts them."""
    min_transitions: PositiveInt = 2_000
    """Transitions before learning starts."""
    samples_per_insert: PositiveFloat = 8.0
    """Transitions drawn for each one collected, held from both sides. Of a sequence all
    `sac.unroll` count, those that its block does not have included."""
    priority_exponent: Share = 0.6
    """α of proportional prioritization (Schaul et al. 2016); 0 is uniform."""
    importance_exponent: Share = 0.4
    """β of the importance weights at the start."""
    importance_updates: PositiveInt = 500_000
    """Updates over which β rises linearly to 1."""
    journal: Switch = True
    """Keep every block on disk, compressed, so that a resumed run finds its replay full."""
    journal_max_bytes: PositiveInt = 20_000_000_000
    """Disk that this task's journal may take; its oldest segments go first."""
    disk_reserve_bytes: NonNegativeInt = 2_000_000_000
    """Free disk that the journal leaves to checkpoints and to others; below it, it pauses."""


@dataclasses.dataclass(frozen=True)
class AgentConfig(Settings):
    """What is learned: Double, dueling DQN with n-step returns."""

    frame_stack: PositiveInt = 4
    """Observations in one network input."""
    n_step: PositiveInt = 3
    """Steps in one return."""
    discount: Share = 0.99
    """γ per environment step."""
    reward_clip: PositiveFloat | None = 1.0
    """Rewards are clipped to ± this for learning; scores never are."""
    double: Switch = True
    """Double Q-learning (van Hasselt et al. 2016)."""
    dueling: Switch = True
    """Dueling heads (Wang et al. 2016)."""
    conv_channels: tuple[PositiveInt, ...] = (32, 64, 64)
    """Filters of the convolutions (kernels 8, 4, 3; strides 4, 2, 1: Mnih et al. 2015)."""
    hidden: PositiveInt = 512
    """Units of the hidden layers."""
    huber_delta: PositiveFloat = 1.0
    """|TD error| from which the loss grows linearly."""


@dataclasses.dataclass(frozen=True)
class LearnerConfig(Settings):
    """How it is learned."""

    batch: PositiveInt = 32
    """Transitions in one update."""
    micro_batch: PositiveInt | None = None
    """Transitions in one pass; fewer than `batch`: gradients are accumulated. null: all at once."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's step size at the start."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the learning rate changes."""
    schedule_updates: PositiveInt = 1_000_000
    """Updates until cosine reaches its end, or between two drops of step."""
    schedule_factor: Share = 0.1
    """Share of the learning rate left at cosine's end, or after each drop of step."""
    adam_epsilon: PositiveFloat = 1.5e-4
    """Adam's ε (Hessel et al. 2018)."""
    max_gradient_norm: PositiveFloat = 10.0
    """Gradients are scaled down to this norm."""
    precision: Precision = "bfloat16"
    """Arithmetic of forward and backward pass; parameters and optimizer stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    resident_share: Share = 0.5
    """Share of the GPU's free memory for frames; 0, or where they do not fit: on the host."""
    gpu_wait_s: NonNegativeFloat = 600.0
    """Seconds to wait for GPU memory that others hold, before `gpu_fallback_batch` is taken."""
    gpu_poll_s: PositiveFloat = 5.0
    """Seconds between two looks at the GPU's free memory; less than a start may take."""
    gpu_fallback_batch: PositiveInt | None = None
    """Transitions in one pass where the wait was in vain (see `micro_batch`); null: an error."""
    threads: NonNegativeInt = 0
    """CPU threads of one update, each with 32 rows or more; 0: half of this task's cores."""
    target: Literal["period", "averaging"] = "period"
    """How the target network follows: a copy every so often, or a moving average."""
    target_period: PositiveInt = 1_000
    """Updates between two copies."""
    target_tau: Share = 0.005
    """Share of the online network that each update mixes in, for averaging."""
    publish_period: PositiveInt = 50
    """Updates between two policy versions."""
    max_skipped_batches: PositiveInt = 1_000
    """Batches skipped in a row, for values that are not finite, at which the learner fails."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Whole games, unclipped, beside the random policy."""

    period_s: PositiveFloat = 120.0
    """Seconds from the start of one evaluation to the next."""
    games: PositiveInt = 10
    """Games of one evaluation, each with its own fixed seed."""
    epsilon: Share = 0.001
    """Share of random actions."""
    seed: NonNegativeInt = 10_000
    """Seed of the first game; the others follow."""
    video: Switch = True
    """Keep a short gif of a game of the newest evaluation and of the best."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Settings):
    """What survives."""

    period_s: PositiveFloat = 20.0
    """Seconds between two checkpoints."""
    keep: PositiveInt = 3
    """Newest checkpoints kept, beside the best."""
    upload: str | None = None
    """Where whole checkpoints are copied to, below RUN/TASK at this fsspec URL; null: no."""


@dataclasses.dataclass(frozen=True)
class TaskConfig(Settings):
    """One thing being learned: its own environments, replay, learner and evaluator."""

    env: EnvironmentConfig = EnvironmentConfig()
    """What is played."""
    rollout: RolloutConfig = RolloutConfig()
    """How it is collected."""
    replay: ReplayConfig = ReplayConfig()
    """What is kept."""
    agent: AgentConfig = AgentConfig()
    """What is learned."""
    learner: LearnerConfig = LearnerConfig()
    """How it is learned."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How good it is."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What survives."""
    stream: StreamConfig = StreamConfig()
    """For rovers: where experience comes from."""
    sac: SACConfig = SACConfig()
    """For rovers: what is learned; `agent` is for games."""
    priority: Annotated[int, Field(strict=True)] = 0
    """Where not all tasks fit, the higher goes first."""

    @property
    def is_fleet(self) -> bool:
        """It learns from rovers, not from a game."""
        return self.stream.source != "none"

    @property
    def draws(self) -> int:
        """Places drawn from replay for one update: transitions, or the sequences that hold them."""
        unroll = self.sac.unroll if self.is_fleet else 1
        return max(1, self.learner.batch // unroll)

    @property
    def block_context(self) -> int:
        """Rows of a block before those that start transitions."""
        return 0 if self.is_fleet else self.agent.frame_stack - 1

    @property
    def block_tail(self) -> int:
        """Rows of a block behind those that start transitions, at least."""
        return 1 if self.is_fleet else self.agent.n_step


@dataclasses.dataclass(frozen=True)
class SupervisorConfig(Settings):
    """When a worker counts as failed, and what follows."""

    working_timeout_s: PositiveFloat = 10.0
    """A worker that answers nothing, or makes no progress at work, for so long is replaced."""
    starting_timeout_s: PositiveFloat = 180.0
    """The same while a worker is made and loads."""
    saving_timeout_s: PositiveFloat = 60.0
    """The same while it saves."""
    backoff_s: PositiveFloat = 1.0
    """Wait before the second restart; doubles with each further one in the window."""
    max_backoff_s: PositiveFloat = 60.0
    """Longest wait before a restart."""
    max_restarts: NonNegativeInt = 5
    """Restarts of one worker within the window; one more parks its task."""
    window_s: PositiveFloat = 300.0
    """Length of that window."""
    max_fruitless_restarts: NonNegativeInt = 5
    """Restarts in a row without any progress between them; one more parks the task."""


@dataclasses.dataclass(frozen=True)
class TelemetryConfig(Settings):
    """Where figures go, beside `metrics.jsonl` and Ray's own metrics."""

    period_s: PositiveFloat = 5.0
    """Seconds between two rows of every metric."""
    tensorboard: Switch = True
    """Write `tensorboard/` in the run directory."""
    wandb: Switch = False
    """Write to Weights & Biases: one run per task, offline unless logged in."""
    wandb_checkpoints: Switch = False
    """Send each best checkpoint there, too, as an artifact."""


@dataclasses.dataclass(frozen=True)
class ClusterConfig(Settings):
    """The Ray cluster."""

    address: str = "local"
    """local: a cluster of this run's own; auto or host:port: one that is there."""
    dashboard: Switch = False
    """Start Ray's dashboard on loopback with a local cluster (about 0.9 GB)."""
    rollout_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Ray's labels of the nodes that rollouts may run on, such as `pool: cpu`; {}: on any."""
    rollout_resources: dict[str, PositiveFloat] = dataclasses.field(default_factory=dict)
    """What each rollout reserves of its node, such as `CPU: 1`; {}: spread evenly over nodes."""

    def check_valid(self) -> None:
        """Raise ConfigError for what Ray would refuse, or never find, when rollouts start."""
        if self.address == "local" and (self.rollout_labels or self.rollout_resources):
            raise ConfigError(
                "cluster.rollout_labels and rollout_resources choose among nodes, and a cluster of "
                "the run's own has one: leave them out, or set cluster.address"
            )
        for key, value in self.rollout_labels.items():
            if not (_LABEL_KEY.fullmatch(key) and _LABEL.fullmatch(value)):
                raise ConfigError(
                    f"cluster.rollout_labels has {key!r}: {value!r}, which is no label of Ray's: "
                    "letters, digits, -, _ and . make one, as in `pool: cpu`"
                )
        for name, amount in self.rollout_resources.items():
            if name in _NOT_RESERVED:
                raise ConfigError(f"cluster.rollout_resources has {name}: rollouts use none of it")
            if amount < 0.0001:
                raise ConfigError(f"cluster.rollout_resources.{name}: {amount:g} is below 0.0001, "
                                  "the least that Ray counts")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """Everything a run needs to know."""

    tasks: dict[str, TaskConfig]
    """Task name (for Atari: the game) to its configuration."""
    seed: NonNegativeInt = 1
    """Root of every random state."""
    max_seconds: PositiveFloat | None = None
    """The run ends normally after this time; null: never."""
    max_env_steps: PositiveInt | None = None
    """A task is complete after this many environment steps; null: never."""
    supervisor: SupervisorConfig = SupervisorConfig()
    """When workers are replaced."""
    load: LoadConfig = LoadConfig()
    """How much of the machine is taken."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Where figures go."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    def check_valid(self) -> None:
        """Raise ConfigError where values contradict each other."""
        if not self.tasks:
            raise ConfigError("tasks is empty: name at least one, such as `tasks: {Pong: {}}`")
        for name, task in self.tasks.items():
            if not _TASK_NAME.fullmatch(name) or name in _TAKEN:
                rule = f"letters, digits, - and _, and none of {', '.join(_TAKEN)}"
                raise ConfigError(f"tasks: {name!r} cannot name a task's directory: {rule}")
            _check_task(name, task)
        self.cluster.check_valid()
        if self.telemetry.wandb_checkpoints and not self.telemetry.wandb:
            raise ConfigError("telemetry.wandb_checkpoints is true, wandb is not: set it, too")
        known = ("custom", "auto", *self.load.tiers)
        if self.load.tier not in known:
            raise ConfigError(f"load.tier is {self.load.tier!r}: one of {', '.join(known)}")


def _check_task(name: str, task: TaskConfig) -> None:
    rollout, replay = task.rollout, task.replay
    if task.is_fleet:
        _check_fleet(name, task)
    if rollout.inference_batch > rollout.environments:
        raise ConfigError(
            f"tasks.{name}.rollout.inference_batch is {rollout.inference_batch}, more than the "
            f"{rollout.environments} environments of one actor: lower it"
        )
    if replay.min_transitions >= replay.capacity_transitions:
        raise ConfigError(
            f"tasks.{name}.replay.min_transitions is {replay.min_transitions}, not below the "
            f"capacity of {replay.capacity_transitions}: learning could never start"
        )


def _check_fleet(name: str, task: TaskConfig) -> None:
    stream, sac = task.stream, task.sac
    if stream.simulated_rovers and stream.url is not None:
        raise ConfigError(
            f"tasks.{name}.stream.simulated_rovers is {stream.simulated_rovers}, which drive at a "
            f"server of this run's own: leave out stream.url ({stream.url})"
        )
    if task.learner.batch % sac.unroll:
        raise ConfigError(
            f"tasks.{name}.learner.batch is {task.learner.batch}, not whole sequences of "
            f"sac.unroll = {sac.unroll} transitions: take a multiple"
        )
    if sac.burn_in and sac.core == "feed_forward":
        raise ConfigError(
            f"tasks.{name}.sac.burn_in is {sac.burn_in}, but a feed_forward core has no memory to "
            "fill: set it to 0, or core to lstm"
        )
