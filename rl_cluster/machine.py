"""What the machine has for a run: cores, memory, shared memory, GPUs.

Invariant: figures are what this process may use now, limits of cgroups applied; looking starts
nothing and imports neither Ray nor torch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pynvml

from rl_cluster.cgroups import usable_cores
from rl_cluster.gpus import usable_gpus
from rl_cluster.sensors import available_memory_bytes


@dataclass(frozen=True)
class Machine:
    """What a run can be planned with."""

    cores: int
    memory_bytes: int
    """Available, on the host and in each cgroup over us."""
    shared_memory_bytes: int
    """Free in /dev/shm, where Ray keeps its objects."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs that have a working driver, and a torch that can use them."""
    gpu_memory_bytes: int = 0
    """Free on the GPU that has least."""
    store_place: str = "/dev/shm"
    """What bounds the object store."""

    @property
    def words(self) -> str:
        """For people: `2 cores, 20.1 GB of memory free, no GPU`."""
        gpus = ", ".join(self.gpus) or "no GPU"
        return f"{self.cores} cores, {self.memory_bytes / 1e9:.1f} GB of memory free, {gpus}"


def detect(shared_memory: Path = Path("/dev/shm")) -> Machine:
    """Look at this machine."""
    gpus = _gpus()
    return Machine(
        cores=max(1, int(usable_cores())),
        memory_bytes=available_memory_bytes(),
        shared_memory_bytes=shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else 0,
        gpus=tuple(name for name, _ in gpus),
        gpu_memory_bytes=min((free for _, free in gpus), default=0),
    )


def _gpus() -> list[tuple[str, int]]:
    """Name and free memory in bytes of each GPU."""
    try:
        return [
            (str(pynvml.nvmlDeviceGetName(gpu)), int(pynvml.nvmlDeviceGetMemoryInfo(gpu).free))
            for gpu in usable_gpus()
        ]
    except pynvml.NVMLError:
        return []
