"""What is settled before anything starts: environments tried, bytes measured, the run admitted.

Invariant: whatever can be wrong with a configuration on this machine is wrong here, in the first
seconds, with a message; nothing has been started and no file was written.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from rl_cluster.algorithm import full_block, specify, weights_bytes
from rl_cluster.config import ClusterConfig, ConfigError, RunConfig, TaskConfig
from rl_cluster.config_file import from_mapping, to_mapping
from rl_cluster.config_file import load as load_config
from rl_cluster.control import Control
from rl_cluster.effective import (
    Difference,
    EffectiveConfig,
    gather_on_host,
    read_effective,
    resolve,
    tasks_at_once,
    with_replay,
)
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.fleet_settings import check_usable
from rl_cluster.levers import LIVE
from rl_cluster.machine import Machine, detect
from rl_cluster.promised_store import promised_bytes
from rl_cluster.remote import RemoteError, check_url
from rl_cluster.resident import resident_bytes
from rl_cluster.run_directory import RunDirectory, is_in_use
from rl_cluster.supervision.admission import (
    STORE_MARGIN_BYTES,
    Admission,
    TaskDemand,
    admit,
    fit,
    most_at_once,
)
from rl_cluster.supervision.tiers import CUSTOM, LoadState
from rl_cluster.telemetry.rows import extra
from rl_cluster.telemetry.wandb_runs import check_available

_STORE_SLACK = 1.06
_WORKERS_BESIDE_ROLLOUTS = 3  # replay, learner, evaluator


class StoreRoom(NamedTuple):
    """What an object store has for a run."""

    free_bytes: int
    place: str
    """For people."""
    claimed_bytes: int = 0
    """By other runs."""
    gpus: int | None = None
    """That Ray gives out on this host's node; None: not known."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start."""

    effective: EffectiveConfig
    machine: Machine
    specs: dict[str, EnvironmentSpec]
    demands: list[TaskDemand]
    """Of every task, fitted; not all of them need run at once."""
    admission: Admission
    """Of those that run at once."""
    most_games: int
    """Tasks that fit at once."""

    @property
    def store_capacity_bytes(self) -> int:
        """What the object store may grow to: a little more than was admitted.

        Memory that is never touched costs nothing, and a store that is never full never looks so.
        """
        wanted = int(_STORE_SLACK * self.admission.object_store_bytes)
        return min(self.machine.shared_memory_bytes, wanted)


def prepare(config: RunConfig, taken_bytes: int = 0, store: StoreRoom | None = None) -> PreparedRun:
    """Settle a configuration on this machine.

    Args:
      taken_bytes: memory that is free now, and will not be: replay of others that still fills.
      store: of others' cluster, where that is known; it is settled again there.

    Raises:
      ConfigError: an environment, a device or a network that cannot be.
      AdmissionError: not enough memory.
    """
    if config.telemetry.wandb:
        _check_wandb()
    if config.telemetry.tensorboard:
        _check_tensorboard()
    machine = _without(detect(), taken_bytes)
    if config.cluster.address != "local":
        machine = _with_store(machine, store or _any_store())
    effective = resolve(config, machine)
    specs, demands, reasons = {}, [], {}
    for name, task in effective.config.tasks.items():
        if task.is_fleet:
            check_usable(name, task.stream)
        specs[name] = specify(task)
        _check_upload(name, task)
        demands.append(_demand(name, task, specs[name], effective.config.cluster))
        if reason := _why_not_resident(task, specs[name], machine, len(config.tasks)):
            reasons[name] = reason
    effective = gather_on_host(effective, reasons)
    most_games, roomy = len(demands), _with_slack(machine, config.cluster)
    if config.load.tier != CUSTOM:
        effective, demands, most_games = _fitted(effective, demands, roomy)
    largest = sorted(demands, key=lambda demand: demand.store_bytes)[-most_games:]
    return PreparedRun(effective, machine, specs, demands, admit(largest, roomy), most_games)


def _without(machine: Machine, taken_bytes: int) -> Machine:
    return replace(
        machine,
        memory_bytes=max(0, machine.memory_bytes - taken_bytes),
        shared_memory_bytes=max(0, machine.shared_memory_bytes - taken_bytes),
    )


def _with_store(machine: Machine, store: StoreRoom) -> Machine:
    """The machine as it is for a run in a store of others.

    What was touched of a store is no longer available, and is there for whoever fills it again:
    this run, as far as no other has claimed it.
    """
    untaken = max(0, psutil.disk_usage("/dev/shm").used - store.claimed_bytes)
    return replace(
        machine,
        memory_bytes=machine.memory_bytes + min(untaken, store.free_bytes),
        shared_memory_bytes=store.free_bytes,
        gpus=machine.gpus[: store.gpus],
        store_place=store.place,
    )


def _with_slack(machine: Machine, cluster: ClusterConfig) -> Machine:
    """A store of others cannot be made larger: what is fitted to it leaves the slack.

    In a small one that is less than the margin which admission keeps free.
    """
    if cluster.address == "local":
        return machine
    free_bytes = machine.shared_memory_bytes
    roomy_bytes = int(free_bytes / _STORE_SLACK) + STORE_MARGIN_BYTES
    return replace(machine, shared_memory_bytes=min(free_bytes, roomy_bytes))


def _any_store() -> StoreRoom:
    """A store as large as one can be here."""
    return StoreRoom(psutil.virtual_memory().total, "this host")


def _check_wandb() -> None:
    try:
        check_available()
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"telemetry.wandb: {error}") from error


def _check_tensorboard() -> None:
    try:
        extra("tensorboard", "tensorboard")
    except ModuleNotFoundError as error:
        raise ConfigError(f"telemetry.tensorboard: {error}") from error


def _check_upload(name: str, task: TaskConfig) -> None:
    try:
        if task.checkpoint.upload is not None:
            check_url(task.checkpoint.upload)
    except RemoteError as error:
        raise ConfigError(f"tasks.{name}.checkpoint.upload: {error}") from error


def _fitted(
    effective: EffectiveConfig, demands: list[TaskDemand], machine: Machine
) -> tuple[EffectiveConfig, list[TaskDemand], int]:
    """Fit the replay of a tier's tasks to the machine's memory; how many fit at once then."""
    asked = tasks_at_once(effective.config)
    games, share = fit(demands, machine, asked)
    differences = []
    if games < asked:
        reason = f"{machine.memory_bytes / 1e9:.1f} GB of memory available"
        differences.append(Difference("load: tasks at once", asked, games, reason))
    fitted = []
    for demand in demands:
        blocks = max(2, int(demand.blocks * share))
        fitted.append(replace(demand, blocks=blocks))
        if blocks < demand.blocks:
            differences.append(_smaller_replay(effective, demand, blocks, games))
    # More than the tier asks for now: a person may ask for a larger one while the run is live.
    return with_replay(effective, differences), fitted, max(games, most_at_once(fitted, machine))


def _smaller_replay(
    effective: EffectiveConfig, demand: TaskDemand, blocks: int, games: int
) -> Difference:
    task = effective.config.tasks[demand.name]
    return Difference(
        f"tasks.{demand.name}.replay.capacity_transitions",
        task.replay.capacity_transitions,
        blocks * task.rollout.block_length,
        f"{games} tasks at once share the memory that is available",
    )


@dataclass(frozen=True)
class AddedTask:
    """A task that may join a live run."""

    config: TaskConfig
    settings: dict[str, Any]
    """The same as a mapping, which is kept with the run."""
    spec: EnvironmentSpec
    tracker_id: str
    store_bytes: int
    """Object store that it fills."""


def prepare_added(run_dir: Path, task: str, settings: Mapping[str, Any]) -> AddedTask:
    """Settle one more task on this machine, with the run's first task for defaults.

    Raises:
      ConfigError: the settings, or the environment that they name, cannot be.
      AdmissionError: it does not fit the machine beside what runs there already.
    """
    run = load_config(run_dir / "config.yaml")
    tree = to_mapping(run)
    defaults = next(iter(tree["tasks"].values()))
    defaults["env"]["name"] = ""  # another game, of the same kind
    tree["tasks"] = {task: dict(settings)}
    config = from_mapping(tree | {"defaults": defaults})
    asked = config.tasks[task].learner.device
    if asked == "auto":  # who asks may see other GPUs than the run does
        config.tasks[task] = _on_the_run_s_device(config.tasks[task], run_dir)
    prepared = prepare(config, _unfilled_bytes(run_dir), _share_of_claim(run, run_dir))
    added = prepared.effective.config.tasks[task]
    plain = to_mapping(prepared.effective.config)["tasks"][task]
    plain["learner"]["device"] = asked
    store_bytes = prepared.store_capacity_bytes
    return AddedTask(added, plain, prepared.specs[task], uuid.uuid4().hex[:12], store_bytes)


def _on_the_run_s_device(config: TaskConfig, run_dir: Path) -> TaskConfig:
    first = next(iter(read_effective(run_dir).tasks.values()))
    return replace(config, learner=replace(config.learner, device=first.learner.device))


def _share_of_claim(run: RunConfig, run_dir: Path) -> StoreRoom | None:
    """What a game that a tier takes turns with can fill of a store of others; else None."""
    if run.cluster.address == "local" or run.load.tier == CUSTOM or not is_in_use(run_dir):
        return None
    share = promised_bytes(Control(run_dir)) // tasks_at_once(run)
    return StoreRoom(share, f"a game's share of the store that {run_dir} has claimed")


def _unfilled_bytes(run_dir: Path) -> int:
    """Object store that a live run was admitted with, and has not filled yet."""
    if not is_in_use(run_dir):
        return 0
    summary = RunDirectory(run_dir).earlier_summary()
    filled = summary["object_store_bytes"] if summary else None
    return max(0, promised_bytes(Control(run_dir)) - (filled or 0))


def with_added(config: RunConfig, tasks: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """A configuration with the tasks that came while the run was live."""
    tree = to_mapping(config)
    tree["tasks"] |= tasks
    return from_mapping(tree)


def at_load(config: TaskConfig, state: LoadState) -> TaskConfig:
    """A task's configuration under a load: its environments and batch as the load has them."""
    rollout = config.rollout
    wanted = rollout.actors * rollout.environments
    environments, batch = state.sizes(wanted, config.learner.batch)
    each = max(1, environments // rollout.actors)
    share = rollout.inference_batch / rollout.environments
    return replace(
        config,
        rollout=replace(
            rollout, environments=each, inference_batch=max(1, min(each, round(share * each)))
        ),
        learner=replace(config.learner, batch=batch),
    )


def is_live_change(old: TaskConfig, new: TaskConfig) -> bool:
    """Whether two configurations differ in nothing but what workers take live."""
    for setting in LIVE:
        group, _, name = setting.partition(".")
        value = getattr(getattr(old, group), name)
        new = replace(new, **{group: replace(getattr(new, group), **{name: value})})
    return old == new


def _why_not_resident(
    task: TaskConfig, spec: EnvironmentSpec, machine: Machine, num_tasks: int
) -> str | None:
    """Why a task's frames cannot lie on its GPU as asked for; None where they can."""
    share = task.learner.resident_share
    if task.learner.device != "cuda" or share == 0:
        return None
    if task.is_fleet:
        return "sequences are gathered on the host"
    if spec.obs_dtype.kind not in "ui":
        return f"frames of {spec.obs_dtype} are searched for NaN on the host"
    own = min(1.0, len(machine.gpus) / num_tasks)
    room, needed = share * own * machine.gpu_memory_bytes, resident_bytes(task, spec)
    if needed <= room:
        return None
    return (
        f"its frames are {needed / 1e9:.2f} GB, more than {share:g} of the "
        f"{own * machine.gpu_memory_bytes / 1e9:.2f} GB of GPU memory that are this task's"
    )


def _demand(
    name: str, task: TaskConfig, spec: EnvironmentSpec, cluster: ClusterConfig
) -> TaskDemand:
    rollout = task.rollout
    # Where they go is a matter of labels: other nodes' memory, that is, which Ray counts.
    rollouts_here = 0 if cluster.rollout_labels else rollout.actors
    in_flight = 2 * rollout.actors * rollout.blocks_per_collect + rollout.blocks_per_collect
    return TaskDemand(
        name=name,
        block_bytes=full_block(task, spec).nbytes,
        blocks=max(2, -(-task.replay.capacity_transitions // rollout.block_length)),
        blocks_in_flight=in_flight,
        weights_bytes=_weights_bytes(name, task, spec),
        processes=rollouts_here + _WORKERS_BESIDE_ROLLOUTS + task.stream.simulated_rovers,
    )


def _weights_bytes(name: str, task: TaskConfig, spec: EnvironmentSpec) -> int:
    try:
        return weights_bytes(task, spec)
    except ValueError as error:
        raise ConfigError(f"tasks.{name}.agent: {error}") from error


def what_would_run(config: RunConfig) -> list[tuple[str, str, str, str]]:
    """(name, requested, effective, reason) of what this machine decides, memory included.

    Of a run on a cluster of others, too: how large a store that cluster could have here.

    Raises:
      ConfigError, AdmissionError: it would not run.
    """
    prepared = prepare(replace(config, cluster=replace(config.cluster, address="local")))
    rows = [
        (d.setting, str(d.requested), str(d.effective), d.reason)
        for d in prepared.effective.differences
    ]
    for demand in prepared.demands:
        text = f"{demand.blocks * demand.block_bytes / 1e9:.2f} GB"
        reason = f"{demand.blocks:,} blocks of {demand.block_bytes:,} bytes, measured"
        rows.append((f"tasks.{demand.name}.replay", text, text, reason))
    store = f"{prepared.admission.object_store_bytes / 1e9:.2f} GB"
    rows.append(("object store", store, store, "the tasks' replays, weights and a margin"))
    return rows
