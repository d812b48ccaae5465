"""What both sides of B12 learn from: networks of one shape, and the same batches in two forms.

Invariant: the numbers follow from the seed alone, so that both sides, each a process of its own,
have the same parameters and the same batches.
"""

from __future__ import annotations

from typing import Any

import torch

from rl_cluster.agents.sac import SACSettings, Sequences
from rl_cluster.agents.sac_networks import SACShape

BATCH, BATCHES = 64, 4
TERMINAL_EVERY = 16
SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {"conv_channels": (8, 16, 32), "features": 128},
    "default": {"conv_channels": (16, 32, 64), "features": 1024},
}
SETTINGS = SACSettings(
    initial_alpha=1.0,
    learning_rate=1e-3,
    actor_learning_rate=3e-4,
    alpha_learning_rate=1e-3,
    max_gradient_norm=float("inf"),
)
"""CleanRL's rates; it clips no gradient."""
_LIT = 0.01
"""Share of a view's cells that are not 0."""


def shape_of(network: str) -> SACShape:
    """Feed-forward, without normalization in the critics, as CleanRL has none."""
    return SACShape(**SHAPES[network], memory="none")


def batches(shape: SACShape) -> list[Sequences]:
    """Sequences of two rows, as replay hands them to the agent; float16 observations."""
    source = torch.Generator().manual_seed(1)
    return [_sequences(shape, source) for _ in range(BATCHES)]


def _sequences(shape: SACShape, source: torch.Generator) -> Sequences:
    rows = (BATCH, 2, shape.row)
    lit = torch.rand(rows, generator=source) < _LIT
    terminal = torch.zeros(BATCH, 2, dtype=torch.bool)
    terminal[::TERMINAL_EVERY, 1] = True
    return Sequences(
        observations=(torch.rand(rows, generator=source) * lit).half(),
        actions=2 * torch.rand(BATCH, 2, shape.actions, generator=source) - 1,
        rewards=2 * torch.rand(BATCH, 2, generator=source) - 1,
        terminal=terminal,
        ends=terminal,
        valid=torch.ones(BATCH, 2, dtype=torch.bool),
        weights=torch.ones(BATCH),
    )
