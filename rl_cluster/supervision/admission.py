"""Admission: the memory of a run, computed from measured bytes before anything starts.

Invariant: a run whose replay, object store and processes do not fit is refused with the numbers;
what is admitted never spills and never grows past what was computed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from rl_cluster.machine import Machine

PROCESS_BYTES = 350_000_000
"""Resident memory of one worker that holds torch (measured: docs/design.md)."""
RAY_BYTES = 1_000_000_000
"""Ray's own processes without its dashboard (measured: docs/design.md)."""
STORE_MARGIN_BYTES = 200_000_000
"""Object store kept free for what is on its way: fragmentation, messages, weights."""
WEIGHT_VERSIONS = 4
"""Versions of the weights that can be alive at once: one held, one arriving, those being read."""

_LEAST_SHARE = 0.1
"""Of the replay that was asked for; with less, fewer tasks run at once."""


class AdmissionError(MemoryError):
    """The run does not fit; the message holds the numbers."""


@dataclass(frozen=True)
class TaskDemand:
    """What one task takes, from measured sizes."""

    name: str
    block_bytes: int
    """Measured bytes of one block."""
    blocks: int
    """Blocks that replay keeps at most."""
    blocks_in_flight: int
    """Blocks on their way to replay, or evicted and not yet let go."""
    weights_bytes: int
    processes: int

    @property
    def replay_bytes(self) -> int:
        """Object store that its replay fills."""
        return self.blocks * self.block_bytes

    @property
    def store_bytes(self) -> int:
        """Object store that it fills."""
        in_flight = self.blocks_in_flight * self.block_bytes
        return self.replay_bytes + in_flight + WEIGHT_VERSIONS * self.weights_bytes


@dataclass(frozen=True)
class Admission:
    """What a run was admitted with."""

    object_store_bytes: int
    host_bytes: int
    """Object store and processes together."""


def fit(demands: list[TaskDemand], machine: Machine, games: int) -> tuple[int, float]:
    """How many tasks, and how much of the replay that they ask for, fit at once.

    Args:
      demands: of every task; any of them may run together.
      machine: what there is.
      games: tasks that should run at once.

    Returns:
      Tasks that fit at once, at most `games`, and the share of their blocks that each may keep.

    Raises:
      AdmissionError: not even one fits with the least replay that is worth having.
    """
    for count in range(min(games, len(demands)), 0, -1):
        processes = _largest(count, (d.processes for d in demands)) * PROCESS_BYTES + RAY_BYTES
        room = min(machine.shared_memory_bytes, machine.memory_bytes - processes)
        fixed = _largest(count, (d.store_bytes - d.replay_bytes for d in demands))
        wanted = _largest(count, (d.replay_bytes for d in demands))
        share = min(1.0, (room - fixed - STORE_MARGIN_BYTES) / wanted)
        if share >= _LEAST_SHARE:
            return count, share
    for demand in demands:
        admit([demand], machine)  # says with numbers why it does not fit
    return 1, 1.0


def most_at_once(demands: list[TaskDemand], machine: Machine) -> int:
    """How many tasks, whichever they are, fit at once with all of their replay; at least 1."""
    for count in range(len(demands), 1, -1):
        store = _largest(count, (d.store_bytes for d in demands)) + STORE_MARGIN_BYTES
        processes = _largest(count, (d.processes for d in demands)) * PROCESS_BYTES + RAY_BYTES
        if store <= min(machine.shared_memory_bytes, machine.memory_bytes - processes):
            return count
    return 1


def gpu_share(tasks: int, gpus: int) -> float:
    """Share of a GPU that each task holds, so that all have one, and none spans two; 0: no GPU."""
    return 1 / math.ceil(tasks / gpus) if gpus else 0.0


def _largest(count: int, values: Iterable[int]) -> int:
    """Sum of the largest: the worst that so many tasks can take, whichever they are."""
    return sum(heapq.nlargest(count, values))


def admit(demands: list[TaskDemand], machine: Machine) -> Admission:
    """Add up a run and hold it against the machine.

    Raises:
      AdmissionError: it does not fit.
    """
    store = sum(demand.store_bytes for demand in demands) + STORE_MARGIN_BYTES
    processes = sum(demand.processes for demand in demands)
    host = store + processes * PROCESS_BYTES + RAY_BYTES
    numbers = "; ".join(
        f"{d.name}: {d.blocks} blocks × {d.block_bytes:,} bytes = "
        f"{d.blocks * d.block_bytes / 1e9:.2f} GB of replay"
        for d in demands
    )
    advice = "lower replay.capacity_transitions or the number of tasks"
    if store > machine.shared_memory_bytes:
        raise AdmissionError(
            f"the object store needs {store / 1e9:.2f} GB and {machine.store_place} has "
            f"{machine.shared_memory_bytes / 1e9:.2f} GB free ({numbers}): {advice}, or enlarge it"
        )
    if host > machine.memory_bytes:
        raise AdmissionError(
            f"the run needs {host / 1e9:.2f} GB and {machine.memory_bytes / 1e9:.2f} GB are "
            f"available ({numbers}; {processes} workers × {PROCESS_BYTES / 1e9:.2f} GB): {advice}"
        )
    return Admission(store, host)
