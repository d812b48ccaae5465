"""Limits that the operating system sets to this process: cores and memory, cgroups included.

Invariant: only files are read; a limit that is not there is no limit. Ray, torch and
`os.cpu_count` see the whole host, which in a container or on a shared machine is not ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> float:
    """Return the cores in this process's affinity, cut by each cgroup quota (v1, v2) over it.

    Args:
      root: where `proc` and `sys` are mounted.
    """
    quotas = [_cpu_quota(group) for group in cgroup_directories(root, "cpu")]
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the lowest memory limit of the cgroups (v1, v2) over this process, or None."""
    limit = min(
        (_memory_limit(group) for group in cgroup_directories(root, "memory")), default=math.inf
    )
    return None if math.isinf(limit) else int(limit)


def cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the process's own cgroup and of all above it.

    A container without a cgroup namespace sees the host's path, of which only the mounted top
    exists: what is not there reads as no limit.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = mounts / controller if controllers else mounts
        inside = Path(path.lstrip("/"))
        yield from (mount / part for part in (inside, *inside.parents))


def _cpu_quota(group: Path) -> float:
    """Return cores; infinity for no quota. v2: `cpu.max`; v1: `cpu.cfs_quota_us` and period."""
    quota, period = (_text(group / "cpu.max") or "max 1").split()
    if quota == "max":
        quota = _text(group / "cpu.cfs_quota_us") or "-1"
        period = _text(group / "cpu.cfs_period_us") or "1"
    return math.inf if int(quota) < 0 else int(quota) / int(period)


def _memory_limit(group: Path) -> float:
    """Return bytes; infinity for no limit, which v1 writes as the largest page-aligned integer."""
    text = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes") or "max"
    return math.inf if text == "max" or int(text) >= 2**62 else int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
