"""Two policies to compare with: random commands, and a hand-written avoider of walls."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.rover.world import ACTIONS

Float32s = NDArray[np.float32]

_CLOSE_M = 0.6
_SLOW = 0.4  # Share of the speed that is left when something is close.


def random_policy(count: int, rng: np.random.Generator) -> Float32s:
    """Commands (count, 2), each uniform in [-1, 1] and independent of all others."""
    return rng.uniform(-1, 1, (count, ACTIONS)).astype(np.float32)


def wall_avoider(proprio: NDArray[Any]) -> Float32s:
    """Commands (b, 2) from proprioception (b, 6): towards the widest gap, slower near things."""
    nearest_m, gap_rad = proprio[:, 0], proprio[:, 5]
    speed = np.where(nearest_m < _CLOSE_M, _SLOW, 1.0)
    # On the spot when the gap lies behind or far to the side.
    forward = speed * np.clip(np.cos(gap_rad), 0, 1)
    turn = np.clip(gap_rad, -0.5, 0.5)
    tracks = np.stack([forward - turn, forward + turn], axis=1).astype(np.float32)
    return np.clip(tracks, -1, 1)
