"""CUDA: an update as one graph, and results that reach the host without stopping the device.

Invariant: a graph reads and writes fixed memory. Inputs are copied in before each replay, and
results are copied out behind it on the same stream, so neither is overwritten while it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from rl_cluster.agents.dqn import Transitions

_WARM_UPS = 3


class Captured:
    """A step captured at its first call and replayed from then on (CUDA graphs).

    Launching some hundred small kernels one by one takes longer than they run; one graph is one
    launch. Batches of another size than the first are an error.

    Args:
      step: reads a batch, changes state, returns a tensor; must not wait for the device, and a
        batch that is not finite must change nothing: that is what warms it up.
    """

    def __init__(self, step: Callable[[Transitions], Tensor]) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Transitions
        self._found: Tensor

    def __call__(self, batch: Transitions) -> Tensor:
        """Take one step; the result is overwritten by the next."""
        if self._graph is None:
            self._graph = self._capture(batch)
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name), non_blocking=True)
        self._graph.replay()
        return self._found

    def _capture(self, batch: Transitions) -> torch.cuda.CUDAGraph:
        self._batch = type(batch)(*(torch.empty_like(tensor) for tensor in vars(batch).values()))
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name))
        self._batch.weights.fill_(torch.nan)
        # Libraries choose algorithms and take memory at their first calls, which no graph may.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._step(self._batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._found = self._step(self._batch)
        return graph


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


def page_locked(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that a GPU copies from by itself, while the host goes on."""
    like = torch.from_numpy(np.empty(0, dtype))
    array: np.ndarray = torch.empty(shape, dtype=like.dtype, pin_memory=True).numpy()
    return array
