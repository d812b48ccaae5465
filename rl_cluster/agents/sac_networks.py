"""Networks of soft actor-critic: a trunk that sees and remembers, policy heads, twin critics.

One trunk serves both sides and is trained by the critics' loss alone; the policy's heads stand on
its outputs, detached (Yarats et al. 2021). That halves the work of an update, most of which is
convolutions, and the critics' gradient is what teaches a trunk from pictures. Invariant: with a
memory or without, a trunk takes and returns `hx` and `cx` of 256, as the rovers' protocol says; one
without returns them as they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

MEMORY = 256
"""Numbers in hx and in cx."""

_CONVOLUTIONS = ((5, 4), (3, 2), (3, 2))  # kernel, stride: neighbours overlap by one cell
_PROPRIO_FEATURES = 32
_LOG_STD_LOW, _LOG_STD_HIGH = -5.0, 2.0

State = tuple[Tensor, Tensor]
"""(N, 256) hx and cx."""


@dataclass(frozen=True)
class SACShape:
    """What the networks are made of."""

    bev: tuple[int, int, int] = (2, 128, 128)
    """Channels, height, width of the bird's-eye view."""
    proprio: int = 6
    actions: int = 2
    conv_channels: tuple[int, ...] = (16, 32, 64)
    """Filters of up to three convolutions."""
    features: int = 1024
    """Of the bird's-eye view."""
    memory: Literal["lstm", "none"] = "lstm"
    hidden: int = 256
    """Units of the hidden layers of policy and critics."""
    normalization: Literal["none", "layer_norm", "dropout"] = "none"
    """Of the critics' hidden layers; dropout comes with layer norm (Hiraoka et al. 2022)."""
    dropout: float = 0.01
    """Share of units dropped."""

    @property
    def row(self) -> int:
        """Numbers in one observation: view and proprioception behind one another."""
        return math.prod(self.bev) + self.proprio


class Trunk(nn.Module):
    """What is known at a row: features of the view, of proprioception, and memory if there is one.

    Raises:
      ValueError: the view is too small for the convolutions, or there are too many of them.
    """

    def __init__(self, shape: SACShape) -> None:
        super().__init__()
        self.shape = shape
        convolutions, cells = _convolutions(shape)
        self.view = nn.Sequential(
            convolutions, nn.Linear(cells, shape.features), nn.LayerNorm(shape.features), nn.Tanh()
        )
        self.body = nn.Sequential(nn.Linear(shape.proprio, _PROPRIO_FEATURES), nn.Tanh())
        seen = shape.features + _PROPRIO_FEATURES
        self.memory = _memory(seen) if shape.memory == "lstm" else None
        self.outputs = seen + (MEMORY if self.memory else 0)
        """F: numbers known at a row."""

    def forward(
        self, bev: Tensor, proprio: Tensor, hx: Tensor, cx: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F) outputs, hx and cx after one row.

        Args:
          bev: (N, *bev). proprio: (N, proprio). hx, cx: (N, 256).
        """
        seen = self.see_parts(bev, proprio)
        if self.memory is None:
            return seen, hx, cx
        hx, cx = self.memory(seen, (hx, cx))
        return torch.cat([seen, hx], 1), hx, cx

    def see(self, observations: Tensor) -> Tensor:
        """(..., E) of (..., ROW) observations of any floating type, without memory."""
        seen = self.see_parts(*self.split(observations.flatten(0, -2)))
        return seen.view(*observations.shape[:-1], -1)

    def see_parts(self, bev: Tensor, proprio: Tensor) -> Tensor:
        """(N, E) of views and proprioception as `split` gives them."""
        return torch.cat([self.view(bev), self.body(proprio)], 1)

    def split(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(N, *bev) and (N, proprio) of (N, ROW) observations, in the type of computations."""
        dtype, cells = next(self.parameters()).dtype, math.prod(self.shape.bev)
        bev, proprio = observations[:, :cells].to(dtype), observations[:, cells:].to(dtype)
        return bev.view(-1, *self.shape.bev), proprio

    def remember(self, seen: Tensor, goes_on: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs over consecutive rows, and the state behind them.

        Args:
          seen: (N, T, E) of `see`, T at least 1.
          goes_on: (N, T) bool: the row before is of the same episode; else memory starts anew.
          state: before the first row.

        Returns:
          (N, T, F), and the last state.
        """
        if self.memory is None:
            return seen, state
        hx, cx = state
        remembered = []
        keep = goes_on[..., None].to(seen.dtype)
        for t in range(seen.shape[1]):
            hx, cx = self.memory(seen[:, t], (hx * keep[:, t], cx * keep[:, t]))
            remembered.append(hx)
        return torch.cat([seen, torch.stack(remembered, 1)], -1), (hx, cx)

    def no_memory(self, rows: int) -> State:
        """State at the start of an episode."""
        zeros = next(self.parameters()).new_zeros(rows, MEMORY)
        return zeros, zeros


class Heads(nn.Module):
    """The policy: a Gaussian whose samples go through tanh (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, inputs: int, shape: SACShape) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(inputs, shape.hidden), nn.ReLU())
        self.mean = nn.Linear(shape.hidden, shape.actions)
        self.log_std = nn.Linear(shape.hidden, shape.actions)

    def forward(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """(..., A) float32 mean and log standard deviation, before tanh, of (..., F)."""
        hidden = self.hidden(known)
        bounded = torch.tanh(self.log_std(hidden).float())
        low, high = _LOG_STD_LOW, _LOG_STD_HIGH
        return self.mean(hidden).float(), low + 0.5 * (high - low) * (bounded + 1)

    def act(self, known: Tensor) -> Tensor:
        """(..., A) float32 deterministic actions of (..., F)."""
        return torch.tanh(self.mean(self.hidden(known)).float())


class Actor(nn.Module):
    """All that a policy needs to run: trunk and heads, in this order of parameters."""

    def __init__(self, trunk: Trunk, heads: Heads) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads

    def forward(
        self, bev: Tensor, proprio: Tensor, hx: Tensor, cx: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, A) float32 deterministic actions, hx and cx after one row."""
        known, hx, cx = self.trunk(bev, proprio, hx, cx)
        return self.heads.act(known), hx, cx


class Critic(nn.Module):
    """A trunk and two action values on top, in this order of parameters."""

    def __init__(self, trunk: Trunk, shape: SACShape) -> None:
        super().__init__()
        self.trunk = trunk
        self.values = nn.ModuleList(_value(trunk.outputs + shape.actions, shape) for _ in range(2))

    def forward(self, known: Tensor, actions: Tensor) -> Tensor:
        """(2, ...) float32 values of (..., F) outputs of the trunk and (..., A) actions."""
        inputs = torch.cat([known, actions.to(known.dtype)], -1)
        return torch.stack([value(inputs).squeeze(-1).float() for value in self.values])


def build_actor(shape: SACShape) -> Actor:
    """An actor whose parameters follow torch's seed."""
    trunk = Trunk(shape)
    return Actor(trunk, Heads(trunk.outputs, shape))


def build_critic(shape: SACShape) -> Critic:
    """A critic whose parameters follow torch's seed."""
    return Critic(Trunk(shape), shape)


def _convolutions(shape: SACShape) -> tuple[nn.Sequential, int]:
    """The convolutions of a view, flattened, and how many numbers come out."""
    channels = shape.conv_channels
    if not 1 <= len(channels) <= len(_CONVOLUTIONS):
        raise ValueError(f"conv_channels is {channels}: give one to {len(_CONVOLUTIONS)} filters")
    layers: list[nn.Module] = []
    depth, height, width = shape.bev
    for filters, (kernel, stride) in zip(channels, _CONVOLUTIONS, strict=False):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if min(height, width) < 1:
            raise ValueError(
                f"views of {shape.bev[1:]} are too small for convolutions {channels}: "
                "give fewer conv_channels"
            )
        layers += [nn.Conv2d(depth, filters, kernel, stride), nn.ReLU()]
        depth = filters
    return nn.Sequential(*layers, nn.Flatten()), depth * height * width


def _memory(inputs: int) -> nn.LSTMCell:
    """A cell that starts out keeping what it holds (Jozefowicz et al. 2015, section 3.1)."""
    cell = nn.LSTMCell(inputs, MEMORY)
    nn.init.ones_(cell.bias_ih[MEMORY : 2 * MEMORY])  # torch's order: input, forget, cell, output
    return cell


def _value(inputs: int, shape: SACShape) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in (inputs, shape.hidden):
        layers.append(nn.Linear(units, shape.hidden))
        if shape.normalization == "dropout":
            layers.append(nn.Dropout(shape.dropout))
        if shape.normalization != "none":
            layers.append(nn.LayerNorm(shape.hidden))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(shape.hidden, 1))
