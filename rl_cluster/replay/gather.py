"""The gather: sampled places in blocks become one batch of numpy arrays.

Invariant: blocks are only read, never written: they are zero-copy views of shared memory. What
comes out is in memory of its own, so a batch stays whole when its blocks are evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import BlockTransitions


@dataclass(frozen=True)
class Batch:
    """Transitions to learn from, in DQN Zoo's notation."""

    s_tm1: np.ndarray
    """(B, stack, *obs_shape): observations before."""
    a_tm1: np.ndarray
    """(B,) int64: actions."""
    r_t: np.ndarray
    """(B,) float32: n-step rewards."""
    discount_t: np.ndarray
    """(B,) float32: discount of the bootstrap, 0 at terminal states."""
    s_t: np.ndarray
    """(B, stack, *obs_shape): observations after."""
    weights: np.ndarray
    """(B,) float32: importance weights, at most 1."""
    sample: Sample
    """Where each came from, for its new priority."""
    sources: tuple[str, ...]
    """Who collected each."""

    def is_finite(self) -> bool:
        """Whether every number of the batch is."""
        arrays = (self.s_tm1, self.r_t, self.discount_t, self.s_t, self.weights)
        return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")

    def check_valid(self) -> None:
        """Raise ValueError unless shapes and dtypes agree."""
        size = len(self.a_tm1)
        if self.s_tm1.shape != self.s_t.shape or self.s_tm1.dtype != self.s_t.dtype:
            raise ValueError(f"s_tm1 {self.s_tm1.shape} and s_t {self.s_t.shape} differ")
        for name in ("r_t", "discount_t", "weights"):
            array = getattr(self, name)
            if array.shape != (size,) or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, not float32({size},)")


def gather(sample: Sample, blocks: Mapping[int, BlockTransitions]) -> Batch:
    """Copy the sampled transitions out of their blocks.

    Raises:
      KeyError: a sampled block is not in `blocks`.
    """
    size = len(sample.block_ids)
    places = list(zip(sample.block_ids.tolist(), sample.rows.tolist(), strict=True))
    held = [blocks[block_id] for block_id, _ in places]
    frames = held[0].observations
    shape = (size, held[0].rows_tm1.shape[1], *frames.shape[1:])
    s_tm1, s_t = np.empty(shape, frames.dtype), np.empty(shape, frames.dtype)
    a_tm1 = np.empty(size, np.int64)
    r_t, discount_t = np.empty(size, np.float32), np.empty(size, np.float32)
    for i, (block, (_, row)) in enumerate(zip(held, places, strict=True)):
        tm1, t = block.rows_tm1[row], block.rows_t[row]
        if block.contiguous[row]:
            s_tm1[i] = block.observations[tm1[0] : tm1[-1] + 1]
            s_t[i] = block.observations[t[0] : t[-1] + 1]
        else:
            s_tm1[i] = block.observations[tm1]
            s_t[i] = block.observations[t]
        a_tm1[i] = block.actions[row]
        r_t[i], discount_t[i] = block.rewards[row], block.discounts[row]
    sources = tuple(block.source for block in held)
    return Batch(s_tm1, a_tm1, r_t, discount_t, s_t, sample.weights, sample, sources)
