"""The machine's sensors: memory, disk, GPUs, temperature, and the CPU that others use.

Invariant: looking changes nothing and never fails: what cannot be read is None. The CPU time of
our own processes is in no figure, whatever they do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pynvml

from rl_cluster.cgroups import cgroup_directories
from rl_cluster.gpus import usable_gpus
from rl_cluster.others_cpu import OthersCpu
from rl_cluster.supervision.pressure import Reading

_KIB = 1024  # what /proc/meminfo counts in
_BELIEVABLE_C = (1.0, 150.0)  # broken sensors say 0, -273 or 255


class Sensors:
    """Reads the machine again and again.

    Args:
      run_dir: whose disk is looked at.
      ours: whether a process, by its id, is this run's; the children of such processes are too.
      root: where `proc` and `sys` are mounted.
    """

    def __init__(self, run_dir: Path, ours: Callable[[int], bool], root: Path = Path("/")) -> None:
        self._run_dir = run_dir
        self._root = root
        self._cpu = OthersCpu(ours, root)
        self._gpus = usable_gpus()

    def read(self, store_used_share: float | None) -> Reading:
        """Look at everything once.

        Args:
          store_used_share: share of the object store in use, which only the cluster knows.
        """
        temperatures = [*_temperatures(self._root), *_gpu_temperatures(self._gpus)]
        return Reading(
            memory_available_share=memory_available_share(self._root),
            memory_stall_share=memory_stall_share(self._root),
            store_used_share=store_used_share,
            gpu_memory_free_share=_gpu_memory_free_share(self._gpus),
            disk_free_bytes=_disk_free_bytes(self._run_dir),
            temperature_c=max(temperatures, default=None),
            others_cpu_share=self._cpu.share(),
        )


class Memory(NamedTuple):
    """What a host or a cgroup has."""

    available_bytes: int
    """File cache that the kernel would give included."""
    limit_bytes: int

    @property
    def available_share(self) -> float:
        """Of the limit."""
        return self.available_bytes / self.limit_bytes


def scarcest_memory(root: Path = Path("/")) -> Memory | None:
    """Return that of the host, or of the cgroup over us, that has the least share left."""
    return min(_memories(root), key=lambda memory: memory.available_share, default=None)


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return what can still be had: the least of what the host and each cgroup over us have."""
    return min((memory.available_bytes for memory in _memories(root)), default=0)


def _memories(root: Path) -> Iterator[Memory]:
    found = [_host_memory(root), *map(_group_memory, cgroup_directories(root, "memory"))]
    return (memory for memory in found if memory is not None)


def memory_available_share(root: Path = Path("/")) -> float | None:
    """Return the share of memory still to be had: the least of host and each cgroup over us."""
    memory = scarcest_memory(root)
    return None if memory is None else memory.available_share


def memory_stall_share(root: Path = Path("/")) -> float | None:
    """Return the share of the last 10 s in which some process waited for memory (Linux PSI)."""
    line = _text(root / "proc/pressure/memory").partition("\n")[0]
    fields = dict(field.split("=") for field in line.split() if "=" in field)
    return float(fields["avg10"]) / 100 if line.startswith("some") else None


def _host_memory(root: Path) -> Memory | None:
    rows = _table(root / "proc/meminfo")
    if "MemAvailable:" not in rows or not rows.get("MemTotal:"):
        return None
    return Memory(rows["MemAvailable:"] * _KIB, rows["MemTotal:"] * _KIB)


def _group_memory(group: Path) -> Memory | None:
    """Return what a cgroup (v2, v1) has left of its limit; None where it has none."""
    limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
    used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes")
    if not (limit.isdecimal() and used.isdecimal() and 0 < int(limit) < 2**62):
        return None
    rows = _table(group / "memory.stat")
    # v1 writes the figures of the group without its children first, and theirs as `total_`.
    cache = sum(rows.get(f"total_{n}", rows.get(n, 0)) for n in ("inactive_file", "active_file"))
    return Memory(min(max(0, int(limit) - int(used) + cache), int(limit)), int(limit))


def _disk_free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _temperatures(root: Path) -> Iterator[float]:
    """Yield °C of each sensor of the kernel, which writes thousandths."""
    for pattern in ("class/thermal/thermal_zone*/temp", "class/hwmon/hwmon*/temp*_input"):
        for path in (root / "sys").glob(pattern):
            try:
                celsius = int(_text(path)) / 1000
            except ValueError:
                continue
            if _BELIEVABLE_C[0] <= celsius <= _BELIEVABLE_C[1]:
                yield celsius


def _gpu_memory_free_share(handles: list[pynvml.c_nvmlDevice_t]) -> float | None:
    shares = []
    for handle in handles:
        try:
            room = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError:
            continue
        shares.append(int(room.free) / int(room.total))
    return min(shares, default=None)


def _gpu_temperatures(handles: list[pynvml.c_nvmlDevice_t]) -> Iterator[float]:
    for handle in handles:
        try:
            yield float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        except pynvml.NVMLError:
            continue


def _table(path: Path) -> dict[str, int]:
    """Return the first number after each line's name."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
