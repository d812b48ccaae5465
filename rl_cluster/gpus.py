"""The GPUs that this process may use, as NVIDIA's driver has them.

Invariant: what CUDA_VISIBLE_DEVICES hides from CUDA and from Ray is not there for us either.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence

import pynvml


def visible_gpus() -> list[pynvml.c_nvmlDevice_t]:
    """Return the driver's handles, which stay good; it is left open for them.

    Raises:
      NVMLError: there is no driver, or it does not work.
    """
    pynvml.nvmlInit()
    every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return every
    if asked.startswith("MIG-"):
        return [pynvml.nvmlDeviceGetHandleByUUID(name.strip()) for name in asked.split(",")]
    return [every[i] for i in chosen(asked, [pynvml.nvmlDeviceGetUUID(gpu) for gpu in every])]


def usable_gpus() -> list[pynvml.c_nvmlDevice_t]:
    """Return those of `visible_gpus` that torch can use; none without a driver, or torch's CUDA."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return []
    try:
        return visible_gpus()
    except pynvml.NVMLError:
        return []


def chosen(asked: str, uuids: Sequence[str]) -> list[int]:
    """Return which GPUs CUDA_VISIBLE_DEVICES names, by number or by how their UUID begins.

    As torch reads it (`torch.cuda._parse_visible_devices`): the first says which of the two it is,
    a name that there is not ends the list, and one that comes twice empties it.

    Args:
      asked: such as `0,2` or `GPU-8a2f`; empty: none.
      uuids: of all GPUs.
    """
    found: list[int] = []
    by_uuid = asked.strip().startswith("GPU-")
    for name in map(str.strip, asked.split(",")):
        if by_uuid and name.startswith("GPU-"):
            named = [i for i, uuid in enumerate(uuids) if uuid.startswith(name)]
        else:
            named = [] if by_uuid or not name.isdecimal() else [int(name)]
        if len(named) != 1 or named[0] >= len(uuids):
            break
        found += named
    return found if len(set(found)) == len(found) else []
