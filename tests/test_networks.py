"""Q networks: shapes, the dueling identity, and pixels scaled where they enter."""

from __future__ import annotations

import pytest
import torch
from learning_samples import ACTIONS, IMAGE, VECTOR, network
from torch import nn

from rl_cluster.agents.networks import PixelConvolution, QNetwork


def pixels(size: int, shape: tuple[int, ...] = IMAGE) -> torch.Tensor:
    return torch.randint(0, 256, (size, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("shape", [IMAGE, VECTOR, (1, 7), (3, 2, 5, 2)])
def test_every_observation_gets_one_float32_value_per_action(
    shape: tuple[int, ...], dueling: bool
) -> None:
    observations = pixels(5, shape) if len(shape) == 3 else torch.randn(5, *shape)
    values = network(shape, dueling=dueling)(observations)
    assert values.shape == (5, ACTIONS)
    assert values.dtype == torch.float32


def test_the_mean_over_actions_is_the_value_stream() -> None:
    """Wang et al. 2016, equation 9: the advantage's mean is taken off."""
    q_network = network(IMAGE)
    observations = pixels(4)
    assert q_network.value is not None
    value = q_network.value(q_network.torso(observations.float()))
    torch.testing.assert_close(q_network(observations).mean(1, keepdim=True), value)


def test_an_advantage_common_to_all_actions_changes_no_value() -> None:
    q_network = network(VECTOR)
    observations = torch.randn(4, *VECTOR)
    before = q_network(observations)
    with torch.no_grad():
        q_network.advantage[-1].bias += 100.0
    torch.testing.assert_close(q_network(observations), before, atol=1e-4, rtol=0)


def test_differences_between_actions_are_those_of_the_advantage() -> None:
    q_network = network(VECTOR)
    observations = torch.randn(4, *VECTOR)
    values, advantage = q_network(observations), q_network.advantage(q_network.torso(observations))
    torch.testing.assert_close(values - values[:, :1], advantage - advantage[:, :1])


def test_without_dueling_there_is_one_stream() -> None:
    q_network = network(VECTOR, dueling=False)
    observations = torch.randn(4, *VECTOR)
    assert q_network.value is None
    assert torch.equal(q_network(observations), q_network.advantage(q_network.torso(observations)))


def test_a_pixel_convolution_is_a_convolution_of_pixels_over_255() -> None:
    layer = PixelConvolution(2, 3, 4, 2)
    ordinary = nn.Conv2d(2, 3, 4, 2)
    ordinary.load_state_dict(layer.state_dict())
    observations = pixels(3).float()
    outputs, wanted = layer(observations), ordinary(observations / 255)
    torch.testing.assert_close(outputs, wanted)
    for found in (outputs, wanted):
        found.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, ordinary.weight.grad)
    torch.testing.assert_close(layer.bias.grad, ordinary.bias.grad)


def test_only_the_first_convolution_scales() -> None:
    kinds = [type(layer) for layer in network((4, 84, 84), conv_channels=(2, 3, 4)).torso]
    convolutions = [kind for kind in kinds if issubclass(kind, nn.Conv2d)]
    assert convolutions == [PixelConvolution, nn.Conv2d, nn.Conv2d]


def test_bytes_and_floats_of_the_same_pixels_have_the_same_values() -> None:
    q_network, observations = network(IMAGE), pixels(4)
    assert torch.equal(q_network(observations), q_network(observations.float()))


def test_an_observation_has_its_values_whatever_else_is_in_the_batch() -> None:
    q_network, observations = network(IMAGE), pixels(8)
    alone = torch.cat([q_network(row[None]) for row in observations])
    torch.testing.assert_close(q_network(observations), alone, rtol=1e-4, atol=1e-5)


def test_every_frame_of_the_stack_counts() -> None:
    q_network, observations = network(IMAGE), pixels(1)
    for frame in range(IMAGE[0]):
        changed = observations.clone()
        changed[:, frame] = 255 - changed[:, frame]
        assert not torch.equal(q_network(changed), q_network(observations))


def test_bfloat16_gives_float32_values_near_the_exact_ones() -> None:
    torch.manual_seed(0)
    q_network = network((4, 84, 84), conv_channels=(8, 8), hidden=32)
    observations = pixels(4, (4, 84, 84))
    exact = q_network(observations)
    rounded = q_network.to(torch.bfloat16)(observations)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)


def test_the_nature_network_has_the_published_size() -> None:
    """Mnih et al. 2015 with 18 actions: 1,693,362 parameters."""
    nature = QNetwork((4, 84, 84), 18, conv_channels=(32, 64, 64), hidden=512, dueling=False)
    assert sum(parameter.numel() for parameter in nature.parameters()) == 1_693_362


@pytest.mark.parametrize(("channels", "smallest"), [((2,), 8), ((2, 2), 20), ((2, 2, 2), 36)])
@pytest.mark.parametrize("tall", [True, False])
def test_images_too_small_for_the_convolutions_are_refused(
    channels: tuple[int, ...], smallest: int, tall: bool
) -> None:
    def shape(side: int) -> tuple[int, ...]:
        return (1, 50, side) if tall else (1, side, 50)

    values = network(shape(smallest), conv_channels=channels)(pixels(1, shape(smallest)))
    assert values.shape == (1, ACTIONS)
    with pytest.raises(ValueError, match="too small for convolutions.*fewer conv_channels"):
        network(shape(smallest - 1), conv_channels=channels)


@pytest.mark.parametrize("channels", [(), (1, 2, 3, 4)])
def test_a_number_of_convolutions_that_is_not_there_is_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one to 3 filters"):
        network((4, 84, 84), conv_channels=channels)


def test_vectors_need_no_convolutions() -> None:
    assert network(VECTOR, conv_channels=())(torch.randn(2, *VECTOR)).shape == (2, ACTIONS)
