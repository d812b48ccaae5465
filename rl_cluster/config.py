"""The configuration of a run: one tree of frozen dataclasses; YAML in, YAML out.

Invariant: a configuration that loads is complete and valid. An unknown key, a wrong type or a value
out of range is a `ConfigError` that names the key, the value and, for a misspelt key, the nearest
known one. `defaults` in a file is a shorthand: every task starts from it; the tree itself holds
each task in full, so that `load(dump(config)) == config`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16"]

_TASK_NAME = re.compile(r"[\w-]+")
_TAKEN = ("tensorboard", "wandb", "lock")  # names in a run directory


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names key, value and remedy."""


class _Settings:
    """Unknown keys are errors in every group of settings."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig(_Settings):
    """What is played."""

    entry: str = "envs.atari:make"
    """`module:function` that makes the vector environment."""
    name: str = ""
    """The game's usual name (`Pong`); empty: the task's name."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the entry: for Atari `protocol`, `backend`, `options`."""


@dataclasses.dataclass(frozen=True)
class RolloutConfig(_Settings):
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
class ReplayConfig(_Settings):
    """Experience kept for learning."""

    capacity_transitions: PositiveInt = 100_000
    """Transitions kept; the oldest block goes first."""
    min_transitions: PositiveInt = 2_000
    """Transitions before learning starts."""
    samples_per_insert: PositiveFloat = 8.0
    """Transitions learned from for each one collected, held from both sides."""
    priority_exponent: Share = 0.6
    """α of proportional prioritization (Schaul et al. 2016); 0 is uniform."""
    importance_exponent: Share = 0.4
    """β of the importance weights at the start."""
    importance_updates: PositiveInt = 500_000
    """Updates over which β rises linearly to 1."""


@dataclasses.dataclass(frozen=True)
class AgentConfig(_Settings):
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
class LearnerConfig(_Settings):
    """How it is learned."""

    batch: PositiveInt = 32
    """Transitions in one update."""
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


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(_Settings):
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
class CheckpointConfig(_Settings):
    """What survives."""

    period_s: PositiveFloat = 20.0
    """Seconds between two checkpoints."""
    keep: PositiveInt = 3
    """Newest checkpoints kept, beside the best."""


@dataclasses.dataclass(frozen=True)
class TaskConfig(_Settings):
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


@dataclasses.dataclass(frozen=True)
class SupervisorConfig(_Settings):
    """When a worker counts as failed, and what follows."""

    heartbeat_timeout_s: PositiveFloat = 60.0
    """A worker that answers nothing for so long is killed and replaced."""
    backoff_s: PositiveFloat = 1.0
    """Wait before the first restart; doubles with each further one in the window."""
    max_restarts: NonNegativeInt = 5
    """Restarts of one worker within the window; one more parks its task."""
    window_s: PositiveFloat = 300.0
    """Length of that window."""


@dataclasses.dataclass(frozen=True)
class TelemetryConfig(_Settings):
    """Where figures go, beside `metrics.jsonl` and Ray's own metrics."""

    period_s: PositiveFloat = 5.0
    """Seconds between two rows of every metric."""
    tensorboard: Switch = True
    """Write `tensorboard/` in the run directory."""
    wandb: Switch = False
    """Write to Weights & Biases: one run per task, offline unless logged in."""


@dataclasses.dataclass(frozen=True)
class ClusterConfig(_Settings):
    """The Ray cluster."""

    address: str = "local"
    """local: a cluster of this run's own; auto or host:port: one that is there."""
    dashboard: Switch = False
    """Start Ray's dashboard on loopback with a local cluster (about 0.9 GB)."""


@dataclasses.dataclass(frozen=True)
class RunConfig(_Settings):
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


def _check_task(name: str, task: TaskConfig) -> None:
    rollout, replay = task.rollout, task.replay
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


_ADAPTER = TypeAdapter(RunConfig)


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    Raises:
      ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping with `tasks`, not {type(raw).__name__}")
    return from_mapping(raw, overrides)


def from_mapping(raw: Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Build a configuration from plain data, overrides applied before defaults are spread."""
    tree = _merged({}, raw)
    tree["tasks"] = _by_name(tree.get("tasks"))
    for override in overrides:
        _apply(tree, override)
    defaults = tree.pop("defaults", None) or {}
    tasks = _by_name(tree["tasks"])
    if not isinstance(tasks, dict) or not isinstance(defaults, dict):
        raise ConfigError("tasks is a list of names or a mapping; defaults is a mapping")
    tree["tasks"] = {name: _merged(defaults, task or {}) for name, task in tasks.items()}
    config = _validate(tree)
    config.check_valid()
    return config


def dump(config: RunConfig) -> str:
    """YAML text that `load` turns into an equal configuration."""
    return str(yaml.safe_dump(to_mapping(config), sort_keys=False))


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Plain data (mappings, lists, scalars) of the whole tree."""
    return dict(_ADAPTER.dump_python(config))


def _merged(base: Mapping[str, Any], over: Any) -> dict[str, Any]:
    if not isinstance(over, Mapping):
        raise ConfigError(f"expected a mapping of settings, found {over!r}")
    merged: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in over.items():
        nested = old if isinstance(old := merged.get(key), Mapping) else {}
        merged[key] = _merged(nested, value) if isinstance(value, Mapping) else value
    return merged


def _by_name(tasks: Any) -> Any:
    """A list of names as the mapping that it stands for."""
    if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks):
        return {task: {} for task in tasks}
    return tasks or {}


def _apply(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override!r} must read a.b=value")
    node = tree
    for key in keys[:-1]:
        child = node[key] = node.get(key) or {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a group of settings")
        node = child
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error


def _validate(tree: Mapping[str, Any]) -> RunConfig:
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors(include_url=False)))) from error


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    if detail["type"] == "unexpected_keyword_argument":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting {path!r}: {hint}"
    return f"{path} is {detail['input']!r}: {detail['msg']}"


def _fields_at(location: list[str]) -> list[str]:
    node: Any = RunConfig
    for part in location:
        fields = getattr(node, "__dataclass_fields__", {})
        node = TaskConfig if part not in fields else _FIELD_TYPES.get(part, node)
    names = [field.name for field in dataclasses.fields(node)]
    return [*names, "defaults"] if node is RunConfig else names


_FIELD_TYPES: dict[str, type | None] = {
    **{field.name: type(field.default) for field in dataclasses.fields(TaskConfig)},
    **{name: type(RunConfig.__dataclass_fields__[name].default)
       for name in ("supervisor", "telemetry", "cluster")},
    "tasks": None,
}  # fmt: skip
