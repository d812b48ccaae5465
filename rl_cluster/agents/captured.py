"""CUDA: an update as one graph, and results that reach the host without stopping the device.

Invariant: a graph reads and writes fixed memory. Inputs are copied in before each replay, and
results are copied out (or aside) behind it on the same stream, so neither is overwritten while it
is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from rl_cluster.agents.dqn import Transitions

_WARM_UPS = 3


class Inputs:
    """Fixed memory that batches of one size are copied into, so that a graph finds them there.

    The few numbers of a batch cross the bus as one copy, not as one for each kind.

    Args:
      like: a batch, in host memory or on the device.
      device: where the memory lies.
    """

    def __init__(self, like: Transitions, device: torch.device) -> None:
        self._page_locked = device.type == "cuda"
        self._few = [name for name, tensor in vars(like).items() if tensor.dim() == 1]
        sizes = [getattr(like, name).nbytes for name in self._few]
        self._bytes = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        parts = dict(zip(self._few, torch.split(self._bytes, sizes), strict=True))
        self.batch = type(like)(
            *(
                parts[name].view(tensor.dtype)
                if name in parts
                else torch.empty_like(tensor, device=device)
                for name, tensor in vars(like).items()
            )
        )
        """The batch that was copied last."""

    def fit(self, batch: Transitions) -> bool:
        """Whether a batch has the shapes that this memory was made for."""
        return all(getattr(self.batch, name).shape == t.shape for name, t in vars(batch).items())

    def take(self, batch: Transitions) -> None:
        """Copy a batch in, on the present stream and without waiting."""
        few = torch.cat([getattr(batch, name).view(torch.uint8) for name in self._few])
        # What is not page-locked is read before the copy returns, behind all work under way.
        if self._page_locked and few.device.type == "cpu":
            few = few.pin_memory()
        self._bytes.copy_(few, non_blocking=True)
        for name, tensor in vars(batch).items():
            if name not in self._few:
                getattr(self.batch, name).copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class Recorded:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    found: Tensor


class Captured:
    """A step captured at its first call and replayed from then on (CUDA graphs).

    Launching some hundred small kernels one by one takes longer than they run; one graph is one
    launch. A batch of another size than the last is captured anew: that takes a second, so sizes
    should change seldom.

    Args:
      step: reads a batch, changes state, returns a tensor; must not wait for the device, and a
        batch that is not finite must change nothing: that is what warms it up.
      device: a GPU.
    """

    def __init__(self, step: Callable[[Transitions], Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._recorded: Recorded | None = None

    def __call__(self, batch: Transitions) -> Tensor:
        """Take one step; the result is overwritten by the next.

        Args:
          batch: on the device, or in host memory; observations there should be page-locked.
        """
        if self._recorded is not None and not self._recorded.inputs.fit(batch):
            self._forget()
        if self._recorded is None:
            self._recorded = self._record(batch)
        self._recorded.inputs.take(batch)
        self._recorded.graph.replay()
        return self._recorded.found

    def _forget(self) -> None:
        """Give back a graph's memory, which the new one needs, once no step reads it."""
        torch.cuda.current_stream().synchronize()
        self._recorded = None

    def _record(self, batch: Transitions) -> Recorded:
        inputs = Inputs(batch, self._device)
        inputs.take(batch)
        inputs.batch.weights.fill_(torch.nan)
        # Libraries choose algorithms and take memory at their first calls, which no graph may.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._step(inputs.batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads gather: they may take page-locked memory, which no graph could
        # bear if this thread did it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = self._step(inputs.batch)
        return Recorded(graph, inputs, found)


def in_host_memory(found: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Begin to copy a device's tensor to the host.

    Returns:
      The copy, and a call that waits until it is there. On a CPU, the tensor itself.
    """
    if found.device.type == "cpu":
        return found, lambda: None
    copy = torch.empty_like(found, device="cpu", pin_memory=True).copy_(found, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return copy, copied.synchronize


def snapshot_in_host_memory(found: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """As `in_host_memory`, for a large tensor: what is computed next need not wait for the bus."""
    if found.device.type == "cpu":
        return in_host_memory(found)
    snapshot = found.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        snapshot.record_stream(side)
        return in_host_memory(snapshot)


def page_locked(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that a GPU copies from by itself, while the host goes on."""
    array: np.ndarray = torch.empty(shape, dtype=as_torch(dtype), pin_memory=True).numpy()
    return array


def on_device(device: torch.device) -> Callable[[tuple[int, ...], np.dtype], Tensor]:
    """What makes arrays in a device's own memory."""
    return lambda shape, dtype: torch.empty(shape, dtype=as_torch(dtype), device=device)


def as_torch(dtype: np.dtype) -> torch.dtype:
    """The same type of number in torch's words."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
