"""What a rollout's network was given, kept alike by every side so that they can be compared.

Invariant: needs numpy only, as it runs in all environments; watching costs a count per batch, but
for the few batches after the start that are copied to check the stacks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 0.01
"""Share of random actions on every side."""
SEED = 0
STICKINESS = 0.25
"""Chance that the emulator repeats the last action (Machado et al. 2018), on every side."""
MAX_STEPS = 27_000
"""Environment steps after which a game is truncated: 30 minutes of play."""
STACK = 4
FRAME_SKIP = 4
_SHAPE = (STACK, 84, 84)
_PROBE_ROWS = 16
_SKIPPED_BATCHES = 24  # games begin with still pictures
_KEPT_BATCHES = 8
WARM_UP_BATCHES = _SKIPPED_BATCHES + _KEPT_BATCHES
"""Batches after which a side has facts."""


class Seen:
    """Counts observations and keeps some early batches."""

    def __init__(self) -> None:
        self._observations = 0
        self._batches = 0
        self._kept: list[np.ndarray] = []

    def add(self, observations: np.ndarray) -> None:
        """Hear of a (b, 4, 84, 84) batch that the network is given."""
        self._observations += len(observations)
        self._batches += 1
        if _SKIPPED_BATCHES < self._batches <= _SKIPPED_BATCHES + _KEPT_BATCHES:
            self._kept.append(observations.copy())

    def facts(self) -> dict[str, Any]:
        """Count, form, and the share of stacks that continue one seen before."""
        if len(self._kept) < _KEPT_BATCHES:
            raise RuntimeError(f"asked after {self._batches} batches: warm up first")
        *before, newest = self._kept
        tails = {stack[1:].tobytes() for batch in before for stack in batch}
        continued = [stack[:-1].tobytes() in tails for stack in newest]
        return {
            "observations": self._observations,
            "shape": list(newest.shape[1:]),
            "dtype": newest.dtype.name,
            "continued": float(np.mean(continued)),
            "frames_differ": len({frame.tobytes() for stack in newest for frame in stack}),
        }


def probe() -> np.ndarray:
    """(16, 4, 84, 84) uint8 noise whose action values every side tells."""
    shape = (_PROBE_ROWS, *_SHAPE)
    return np.random.default_rng(SEED).integers(256, size=shape, dtype=np.uint8)


def why_wrong(facts: dict[str, Any], reference: dict[str, Any]) -> str:
    """What is not as it should be in a side's facts; empty where all is well.

    Args:
      facts: `Seen.facts` of the side, with its steps, actions, frame_skip and values.
      reference: the same of the side that all others are compared with.
    """
    values, expected = np.asarray(facts["values"]), np.asarray(reference["values"])
    far = values.shape != expected.shape or np.abs(values - expected).max() > 0.02 * _span(expected)
    faults = {
        f"observations {facts['shape']}": facts["shape"] != list(_SHAPE),
        f"observations of {facts['dtype']}": facts["dtype"] != "uint8",
        f"{facts['continued']:.0%} of stacks continue an earlier one": facts["continued"] < 0.9,
        f"{facts['frames_differ']} different frames": facts["frames_differ"] < 2,
        f"{facts['frame_skip']} frames a step": facts["frame_skip"] != FRAME_SKIP,
        f"{facts['observations']} observations acted on in {facts['steps']} steps": (
            facts["observations"] < facts["steps"]
        ),
        f"actions {facts['actions']}": np.count_nonzero(facts["actions"]) < 2,
        "its network gives other values": far,
    }
    return "; ".join(fault for fault, found in faults.items() if found)


def _span(values: np.ndarray) -> float:
    return float(values.max() - values.min())
