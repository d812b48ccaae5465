"""Parameters as one flat vector: what is optimized, published, and loaded.

Invariant: the order is that of `Module.parameters()`, so two networks of one architecture agree on
it; a vector of another length is refused. Every parameter of a `FlatNetwork` is a view of one
vector, so one copy, one norm and one optimizer step serve them all.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class FlatNetwork(Generic[Network]):
    """A network that computes in `dtype` from parameters that are kept exactly.

    Micikevicius et al. 2018, section 3.1: small steps would be lost in a bfloat16 parameter.

    Args:
      network: taken over; its parameters become views.
      dtype: of its computations.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.vector = torch.cat([p.detach().reshape(-1).float() for p in network.parameters()])
        """(P,) float32: the parameters; after a change, call `refresh`."""
        self.network: Network = network.to(dtype)
        self._shapes = {name: p.shape for name, p in network.named_parameters()}
        exact = dtype == torch.float32
        self._computed = self.vector if exact else self.vector.to(dtype)
        parts = self.named(self._computed)
        for name, parameter in self.network.named_parameters():
            parameter.data = parts[name]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a (P,) vector, shaped as the parameters that its parts stand for."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = torch.split(vector, sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def refresh(self, part: slice = slice(None)) -> None:
        """Let the network compute with the vector as it is now."""
        if self._computed is not self.vector:
            self._computed[part].copy_(self.vector[part])

    def load(self, flat: np.ndarray) -> None:
        """Copy (P,) float32 parameters in; `flat` may be read-only.

        Raises:
          ValueError: the length differs from the network's.
        """
        if flat.shape != tuple(self.vector.shape):
            raise ValueError(
                f"weights of shape {flat.shape} do not fit a network of {len(self.vector)} "
                "parameters: they come from another architecture"
            )
        if self.vector.device.type == "cpu":
            self.vector.numpy()[:] = flat  # torch has no tensors that cannot be written to
        else:
            self.vector.copy_(torch.tensor(flat))
        self.refresh()


def num_parameters(network: nn.Module) -> int:
    """P: numbers in all parameters."""
    return sum(p.numel() for p in network.parameters())
