"""GPU memory that others use, too: how much a learner needs, waiting for it, and taking it.

Invariant: memory is reserved by allocating it, never by having seen that it was free. Whoever comes
out of a reservation holds what its updates need, optimizer state included; who cannot have it says
so with the numbers, after a time that was stated, and holds nothing.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rl_cluster.agents.captured import as_torch
from rl_cluster.agents.dqn import DQN, Transitions
from rl_cluster.agents.flat import num_parameters
from rl_cluster.agents.networks import QNetwork
from rl_cluster.config import AgentConfig, LearnerConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import build_agent, build_network
from rl_cluster.resident import resident_bytes
from rl_cluster.rover_learning import sac_bytes

Made = TypeVar("Made")

_LIBRARY_BYTES = 256 * 2**20
"""Bound, not measured: workspaces of cuBLAS and cuDNN, and what torch's allocator rounds up."""
_VECTORS = 7
"""Of (P,) float32: online, target, two moments, their gradient, a pass's own gradients, and the
copy that is published."""
_BATCHES_ON_DEVICE = 7
"""The one that a step reads; of resident frames also those that wait, are gathered, or are still
read by steps under way."""


class GpuMemoryError(RuntimeError):
    """The GPU has no room for a task, after all the waiting that was asked for."""


@dataclass(frozen=True)
class Need:
    """One way to compute an update, and what it takes."""

    micro_batch: int | None
    """Transitions in one pass; None: all at once."""
    needed_bytes: int


@dataclass(frozen=True)
class Reserved(Generic[Made]):
    """What holds the memory now."""

    made: Made
    micro_batch: int | None
    """Transitions in one pass; None: all at once."""
    waited_s: float
    reason: str | None
    """Why the fallback was taken; None where everything is as it was asked for."""


def reserve(
    wanted: Need,
    fallback: Need | None,
    make: Callable[[int | None], Made],
    free_bytes: Callable[[], int],
    *,
    wait_s: float,
    poll_s: float,
    sleep: Callable[[float], object],
    say: Callable[[str], object],
) -> Reserved[Made]:
    """Wait until there is room, and take it; others may be faster, so look again until the timeout.

    Args:
      wanted: as configured.
      fallback: what is tried, once, when the wait is over; None: nothing.
      make: allocates, given the transitions of one pass; whatever it made is let go of where it
        raises that the device is full.
      free_bytes: free memory at this moment.
      wait_s: pauses in all; 0: one look.
      poll_s: pause between two looks.
      sleep: pauses so many seconds.
      say: hears at every look in vain how it stands.

    Raises:
      GpuMemoryError: there was no room in time, not even for the fallback.
    """
    waited_s = 0.0
    while True:
        made, shortage = _take(wanted, make, free_bytes())
        if made is not None:
            return Reserved(made[0], wanted.micro_batch, waited_s, None)
        if waited_s >= wait_s:
            break
        say(f"waiting for GPU memory: {shortage}; {waited_s:.0f} of {wait_s:.0f} s waited")
        pause_s = min(poll_s, wait_s - waited_s)
        sleep(pause_s)
        waited_s += pause_s
    reason = f"{shortage} after {waited_s:.0f} s of waiting"
    if fallback is None:
        raise GpuMemoryError(f"{reason}: {_ADVICE}, or state learner.gpu_fallback_batch")
    made, shortage = _take(fallback, make, free_bytes())
    if made is None:
        raise GpuMemoryError(
            f"{reason}; and with {fallback.micro_batch} transitions in one pass "
            f"(learner.gpu_fallback_batch) {shortage}: {_ADVICE}"
        )
    return Reserved(made[0], fallback.micro_batch, waited_s, reason)


_ADVICE = (
    "free some, wait longer (learner.gpu_wait_s), lower learner.batch, learner.micro_batch or "
    "learner.resident_share"
)


def _take(
    need: Need, make: Callable[[int | None], Made], free_bytes: int
) -> tuple[tuple[Made] | None, str]:
    """What was made, or why not."""
    shortage = f"{_gigabytes(need.needed_bytes)} needed, {_gigabytes(free_bytes)} free"
    if free_bytes < need.needed_bytes:
        return None, shortage
    try:
        return (make(need.micro_batch),), shortage
    except RuntimeError as error:
        if not _says_full(error):
            raise
    # Only here, behind the except clause, does nothing refer to what was made any more.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, f"{shortage}, and gone when it was to be taken"


def _says_full(error: RuntimeError) -> bool:
    """Whether a device had no memory left: torch's allocator says so, and libraries do by text."""
    text = str(error).lower()
    full = "out of memory" in text or "alloc_failed" in text
    return full or isinstance(error, torch.OutOfMemoryError)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def reserve_learner(
    task: TaskConfig,
    spec: EnvironmentSpec,
    device: torch.device,
    make: Callable[[LearnerConfig], Made],
    say: Callable[[str], object],
) -> Reserved[Made]:
    """Make what a task's learner keeps on its device, where others may hold the memory.

    Args:
      task: its `learner.gpu_*` settings say how long, and what follows.
      spec: the task's observations.
      device: on a CPU nothing is waited for.
      make: such as `warmed_agent` and the resident frames, given the settings to build with. Called
        anew after a failure; torch's seed is as before, so the parameters are the same.
      say: as in `reserve`.

    Raises:
      GpuMemoryError: there was no room in time.
    """
    learner, random_state = task.learner, torch.get_rng_state()

    def attempt(micro_batch: int | None) -> Made:
        torch.set_rng_state(random_state)
        return make(replace(learner, micro_batch=micro_batch))

    if device.type != "cuda":
        return Reserved(attempt(learner.micro_batch), learner.micro_batch, 0.0, None)
    return reserve(
        _need(task, spec, learner.micro_batch),
        _fallback(task, spec),
        attempt,
        lambda: device_free_bytes(device),
        wait_s=learner.gpu_wait_s,
        poll_s=learner.gpu_poll_s,
        sleep=time.sleep,
        say=say,
    )


def warmed_agent(
    agent: AgentConfig, learner: LearnerConfig, spec: EnvironmentSpec, device: torch.device
) -> DQN:
    """An agent that has taken an update of the real size, and with it all the memory it needs.

    The update is refused by the agent itself, so parameters follow torch's seed as ever.

    Raises:
      torch.OutOfMemoryError: the device is full.
    """
    built = build_agent(agent, learner, spec, device)
    shape = (learner.batch, agent.frame_stack, *spec.obs_shape)
    frames = torch.zeros(shape, dtype=as_torch(spec.obs_dtype))
    numbers = torch.zeros(learner.batch)
    built.warm_up(Transitions(frames, numbers.long(), numbers, numbers, frames, numbers))
    return built


def device_free_bytes(device: torch.device) -> int:
    """Memory that this process could allocate on a GPU: free for all, or kept by torch for us."""
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        if not _says_full(error):
            raise
        return 0  # not even room for the driver's own part
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def needed_bytes(task: TaskConfig, spec: EnvironmentSpec) -> int:
    """Bytes of a GPU that a task's learner needs: updates, and frames where they are resident.

    An upper bound but for the libraries' part, which is a constant.
    """
    if task.is_fleet:
        return sac_bytes(task) + _LIBRARY_BYTES
    agent, learner = task.agent, task.learner
    with torch.device("meta"):
        network = build_network(agent, spec)
    weights = 4 * _VECTORS * num_parameters(network)
    if learner.precision == "bfloat16":
        weights += 2 * 2 * num_parameters(network)
        network = network.to(torch.bfloat16)
    shape = (agent.frame_stack, *spec.obs_shape)
    batches = 2 * learner.batch * math.prod(shape) * spec.obs_dtype.itemsize
    if learner.resident_share > 0:
        batches = _BATCHES_ON_DEVICE * batches + resident_bytes(task, spec)
    rows = min(learner.batch, learner.micro_batch or learner.batch)
    return weights + batches + rows * _row_bytes(network, shape) + _LIBRARY_BYTES


def _row_bytes(network: QNetwork, shape: tuple[int, ...]) -> int:
    """Bound of what a pass holds at once for one row, from a network that computes nothing.

    Twice what the forward pass keeps for the gradient: on the way back, or for the targets, as much
    again is alive at most.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = network(torch.empty(1, *shape, device="meta"))
    del values  # until here, no two tensors can have shared a place
    return 2 * sum(kept.values())


def _need(task: TaskConfig, spec: EnvironmentSpec, micro_batch: int | None) -> Need:
    learner = replace(task.learner, micro_batch=micro_batch)
    return Need(micro_batch, needed_bytes(replace(task, learner=learner), spec))


def _fallback(task: TaskConfig, spec: EnvironmentSpec) -> Need | None:
    """What the configuration states, where it would save anything."""
    learner = task.learner
    rows = min(learner.batch, learner.micro_batch or learner.batch)
    if learner.gpu_fallback_batch is None or learner.gpu_fallback_batch >= rows:
        return None
    return _need(task, spec, learner.gpu_fallback_batch)
