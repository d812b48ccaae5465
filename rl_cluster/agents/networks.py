"""Q networks: the Nature torso for images, a multi-layer perceptron for vectors, dueling on top.

Invariant: a network takes observations as the environment gives them (uint8 images are scaled to
[0, 1] inside) and returns one float32 value per action.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_CONVOLUTIONS = ((8, 4), (4, 2), (3, 1))  # kernel, stride: Mnih et al. 2015


class QNetwork(nn.Module):
    """Action values of a stack of observations.

    Args:
      obs_shape: (stack, *shape) of one input; three dimensions mean an image stack.
      num_actions: A.
      conv_channels: filters of up to three convolutions (images only).
      hidden: units of the hidden layers.
      dueling: separate streams for value and advantage (Wang et al. 2016, eq. 9).

    Raises:
      ValueError: the image is too small for the convolutions, or there are too many of them.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        conv_channels: tuple[int, ...],
        hidden: int,
        dueling: bool,
    ) -> None:
        super().__init__()
        self.torso = (
            _convolutions(obs_shape, conv_channels)
            if len(obs_shape) == 3
            else _perceptron(obs_shape, hidden)
        )
        with torch.no_grad():
            features = self.torso(torch.zeros(1, *obs_shape)).shape[1]
        self.advantage = _head(features, hidden, num_actions)
        self.value = _head(features, hidden, 1) if dueling else None

    def forward(self, observations: Tensor) -> Tensor:
        """(B, A) float32 action values of (B, *obs_shape) observations, uint8 or float32."""
        # Whole numbers up to 255 are exact in bfloat16, and one pass is all that they cost.
        dtype = next(self.parameters()).dtype
        features: Tensor = self.torso(observations.to(dtype))
        advantage: Tensor = self.advantage(features).float()
        if self.value is None:
            return advantage
        value: Tensor = self.value(features).float()
        return value + advantage - advantage.mean(1, keepdim=True)


class PixelConvolution(nn.Conv2d):
    """A convolution of pixels in [0, 255] that acts as one of [0, 1]: its few weights are scaled.

    Scaling the many pixels instead took a third of an update's time on a CPU.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, filters, height, width) of (B, channels, height, width) pixels."""
        outputs: Tensor = self._conv_forward(pixels, self.weight / 255.0, self.bias)
        return outputs


def _convolutions(obs_shape: tuple[int, ...], channels: tuple[int, ...]) -> nn.Sequential:
    if not 1 <= len(channels) <= len(_CONVOLUTIONS):
        raise ValueError(f"conv_channels is {channels}: give one to {len(_CONVOLUTIONS)} filters")
    layers: list[nn.Module] = []
    depth, height, width = obs_shape
    for filters, (kernel, stride) in zip(channels, _CONVOLUTIONS, strict=False):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if min(height, width) < 1:
            raise ValueError(
                f"images of {obs_shape[1:]} are too small for convolutions {channels}: "
                "give fewer conv_channels"
            )
        convolution = nn.Conv2d if layers else PixelConvolution
        layers += [convolution(depth, filters, kernel, stride), nn.ReLU()]
        depth = filters
    return nn.Sequential(*layers, nn.Flatten())


def _perceptron(obs_shape: tuple[int, ...], hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(obs_shape), hidden), nn.ReLU())


def _head(features: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
