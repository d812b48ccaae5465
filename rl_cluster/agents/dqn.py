"""Double, dueling DQN with n-step returns and prioritization.

Rainbow (Hessel et al. 2018) without the distribution and the noise.

Invariant: an update happens whole or not at all. A batch that is not finite, or that gives a loss
or a gradient that is not, leaves parameters, optimizer and target network as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl_cluster.agents import losses
from rl_cluster.agents.networks import QNetwork


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions on the learner's device."""

    s_tm1: Tensor
    """(B, *obs_shape), uint8 or float32."""
    a_tm1: Tensor
    """(B,) int64."""
    r_t: Tensor
    """(B,) float32, n-step."""
    discount_t: Tensor
    """(B,) float32."""
    s_t: Tensor
    """(B, *obs_shape)."""
    weights: Tensor
    """(B,) float32 importance weights."""

    def is_finite(self) -> bool:
        """Whether every number of the batch is."""
        floats = [t for t in vars(self).values() if t.is_floating_point()]
        return bool(torch.stack([t.isfinite().all() for t in floats]).all())


@dataclass(frozen=True)
class DQNSettings:
    """What the mathematics depends on."""

    double: bool
    huber_delta: float
    learning_rate: float
    schedule: Literal["constant", "cosine", "step"]
    schedule_updates: int
    schedule_factor: float
    adam_epsilon: float
    max_gradient_norm: float
    bfloat16: bool
    target: Literal["period", "averaging"]
    target_period: int
    target_tau: float


@dataclass(frozen=True)
class Update:
    """What an update found."""

    td_errors: Tensor
    """(B,) float32, detached."""
    loss: float
    q_mean: float
    gradient_norm: float


class SkippedBatch(ArithmeticError):
    """The batch, its loss or its gradient was not finite; nothing was changed."""


class DQN:
    """Online and target network, optimizer, and the update that joins them."""

    def __init__(self, network: QNetwork, target: QNetwork, settings: DQNSettings) -> None:
        self.online, self.target, self.settings = network, target, settings
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self._device = next(network.parameters()).device
        self.optimizer = torch.optim.Adam(
            network.parameters(), settings.learning_rate, eps=settings.adam_epsilon, fused=True
        )
        self._allocate_optimizer_state()

    def update(self, batch: Transitions, updates: int) -> Update:
        """One gradient step; `updates` is the number of steps taken before.

        Raises:
          SkippedBatch: something was not finite; nothing was changed.
        """
        if not batch.is_finite():
            raise SkippedBatch("the batch holds values that are not finite")
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            errors, q_tm1 = self._td_errors(batch)
        loss = losses.weighted_loss(errors, batch.weights, self.settings.huber_delta)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.online.parameters(), self.settings.max_gradient_norm, foreach=True
        )
        found = Update(errors.detach(), loss.item(), q_tm1.mean().item(), norm.item())
        if not (math.isfinite(found.loss) and math.isfinite(found.gradient_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise SkippedBatch(f"loss {found.loss}, gradient norm {found.gradient_norm}")
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.settings, updates)
        self.optimizer.step()
        self._follow(updates + 1)
        return found

    def _td_errors(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            q_t = self.target(batch.s_t)
            if self.settings.double:
                selector = self.online(batch.s_t)
                target_tm1 = losses.double_q_learning_targets(
                    batch.r_t, batch.discount_t, q_t, selector
                )
            else:
                target_tm1 = losses.q_learning_targets(batch.r_t, batch.discount_t, q_t)
        q_tm1 = self.online(batch.s_tm1)
        return losses.td_errors(q_tm1, batch.a_tm1, target_tm1), q_tm1.detach()

    def _follow(self, updates: int) -> None:
        """Move the target network: by averaging (Polyak & Juditsky 1992) or by a copy a period."""
        if self.settings.target == "averaging":
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.target.parameters()),
                    list(self.online.parameters()),
                    self.settings.target_tau,
                )
        elif updates % self.settings.target_period == 0:
            self.target.load_state_dict(self.online.state_dict())

    def _allocate_optimizer_state(self) -> None:
        """Take Adam's memory now, so that a full device fails at the start, not later."""
        for parameter in self.online.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=self._device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def model_tensors(self) -> dict[str, Tensor]:
        """Both networks' parameters by name, for a checkpoint."""
        named = {"online": self.online, "target": self.target}
        return {
            f"{prefix}.{name}": tensor.detach().contiguous()
            for prefix, network in named.items()
            for name, tensor in network.state_dict().items()
        }

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Adam's state by parameter name, for a checkpoint."""
        return {
            f"{name}.{key}": value.detach().contiguous()
            for name, parameter in self.online.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def load_tensors(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Continue from a checkpoint.

        Raises:
          ValueError: names or shapes differ from this agent's; nothing was changed.
        """
        _check_same(self.model_tensors(), model, "model")
        _check_same(self.optimizer_tensors(), optimizer, "optimizer")
        for prefix, network in (("online", self.online), ("target", self.target)):
            network.load_state_dict(
                {name: model[f"{prefix}.{name}"] for name in network.state_dict()}
            )
        for name, parameter in self.online.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                value.copy_(optimizer[f"{name}.{key}"])


def learning_rate(settings: DQNSettings, updates: int) -> float:
    """Step size after so many updates: constant, cosine (Loshchilov & Hutter 2017) or by steps."""
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        drops = updates // settings.schedule_updates
        return float(settings.learning_rate * settings.schedule_factor**drops)
    progress = min(1.0, updates / settings.schedule_updates)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    floor = settings.schedule_factor
    return settings.learning_rate * (floor + (1 - floor) * share)


def _check_same(own: dict[str, Tensor], other: dict[str, Tensor], what: str) -> None:
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
