"""Parameters as one flat vector: what travels from learner to rollouts.

Invariant: the order is that of `Module.parameters()`, so two networks of one architecture agree on
it; a vector of another length is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def flatten(network: nn.Module) -> np.ndarray:
    """(P,) float32 copy of all parameters."""
    vector = torch.cat([p.detach().reshape(-1).float() for p in network.parameters()])
    flat: np.ndarray = vector.cpu().numpy()
    return flat


def load_flat(network: nn.Module, flat: np.ndarray) -> None:
    """Copy a flat vector into the parameters; `flat` may be read-only.

    Raises:
      ValueError: the length differs from the network's.
    """
    expected = sum(p.numel() for p in network.parameters())
    if flat.shape != (expected,):
        raise ValueError(
            f"weights of shape {flat.shape} do not fit a network of {expected} parameters: "
            "they come from another architecture"
        )
    start = 0
    with torch.no_grad():
        for parameter in network.parameters():
            part = flat[start : start + parameter.numel()]
            parameter.copy_(torch.tensor(part).view(parameter.shape))
            start += parameter.numel()
