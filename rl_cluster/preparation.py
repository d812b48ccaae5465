"""What is settled before anything starts: environments tried, bytes measured, the run admitted.

Invariant: whatever can be wrong with a configuration on this machine is wrong here, in the first
seconds, with a message; nothing has been started and no file was written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl_cluster.agents.flat import num_parameters
from rl_cluster.config import ConfigError, RunConfig, TaskConfig
from rl_cluster.effective import EffectiveConfig, gather_on_host, resolve
from rl_cluster.environments import EnvironmentSpec, make_environment, spec_of
from rl_cluster.learner import build_network
from rl_cluster.machine import Machine, detect
from rl_cluster.replay.block import Block, BlockBuilder
from rl_cluster.resident import resident_bytes
from rl_cluster.supervision.admission import Admission, TaskDemand, admit

_WORKERS_BESIDE_ROLLOUTS = 3  # replay, learner, evaluator


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start."""

    effective: EffectiveConfig
    machine: Machine
    specs: dict[str, EnvironmentSpec]
    demands: list[TaskDemand]
    admission: Admission


def prepare(config: RunConfig) -> PreparedRun:
    """Settle a configuration on this machine.

    Raises:
      ConfigError: an environment, a device or a network that cannot be.
      AdmissionError: not enough memory.
    """
    machine = detect()
    effective = resolve(config, machine)
    specs, demands, reasons = {}, [], {}
    for name, task in effective.config.tasks.items():
        env = make_environment(task.env, num_envs=1, threads=1)
        specs[name] = spec_of(env)
        env.close()
        demands.append(_demand(name, task, specs[name]))
        if reason := _why_not_resident(task, specs[name], machine, len(config.tasks)):
            reasons[name] = reason
    effective = gather_on_host(effective, reasons)
    return PreparedRun(effective, machine, specs, demands, admit(demands, machine))


def _why_not_resident(
    task: TaskConfig, spec: EnvironmentSpec, machine: Machine, num_tasks: int
) -> str | None:
    """Why a task's frames cannot lie on its GPU as asked for; None where they can."""
    share = task.learner.resident_share
    if task.learner.device != "cuda" or share == 0:
        return None
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


def _demand(name: str, task: TaskConfig, spec: EnvironmentSpec) -> TaskDemand:
    rollout = task.rollout
    in_flight = 2 * rollout.actors * rollout.blocks_per_collect + rollout.blocks_per_collect
    return TaskDemand(
        name=name,
        block_bytes=_full_block(task, spec).nbytes,
        blocks=max(2, -(-task.replay.capacity_transitions // rollout.block_length)),
        blocks_in_flight=in_flight,
        weights_bytes=_weights_bytes(name, task, spec),
        processes=rollout.actors + _WORKERS_BESIDE_ROLLOUTS,
    )


def _weights_bytes(name: str, task: TaskConfig, spec: EnvironmentSpec) -> int:
    try:
        return 4 * num_parameters(build_network(task.agent, spec))  # float32
    except ValueError as error:
        raise ConfigError(f"tasks.{name}.agent: {error}") from error


def _full_block(task: TaskConfig, spec: EnvironmentSpec) -> Block:
    """A block as the rollouts will make it, to be measured."""
    builder = BlockBuilder(
        "measure",
        length=task.rollout.block_length,
        context=task.agent.frame_stack - 1,
        tail=task.agent.n_step,
    )
    observation = np.zeros(spec.obs_shape, spec.obs_dtype)
    while True:
        block = builder.append(
            observation, 0, 0.0, terminated=False, truncated=False, first=False, policy_version=0
        )
        if block is not None:
            return block


def what_would_run(config: RunConfig) -> list[tuple[str, str, str, str]]:
    """(name, requested, effective, reason) of what this machine decides, memory included.

    Raises:
      ConfigError, AdmissionError: it would not run.
    """
    prepared = prepare(config)
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
