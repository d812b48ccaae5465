"""Tensors by name, as checkpoints hold them.

Invariant: what is refused has changed nothing.
"""

from __future__ import annotations

from torch import Tensor


def check_same(own: dict[str, Tensor], other: dict[str, Tensor], what: str) -> None:
    """Raise ValueError unless names and shapes agree; `what` is the part of the checkpoint."""
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    given = {name: tuple(tensor.shape) for name, tensor in other.items()}
    wrong = sorted(n for n in shapes.keys() | given.keys() if shapes.get(n) != given.get(n))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"the checkpoint's {what} does not fit this configuration at {name}: it has "
            f"{given.get(name, 'nothing')}, expected {shapes.get(name, 'nothing')}. "
            "Resume with the configuration that it was made with"
        )


def copy_into(own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Copy the values of tensors of the same names, in place."""
    for name, tensor in own.items():
        tensor.copy_(other[name])
