"""Double, dueling DQN with n-step returns and prioritization.

Rainbow (Hessel et al. 2018) without the distribution and the noise.

Invariant: an update happens whole or not at all. A batch that is not finite, or that gives a loss
or a gradient that is not, leaves parameters, optimizer and target network as they were. In however
many passes a batch is computed, it is one loss, one gradient, one clip and one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rl_cluster.agents import losses
from rl_cluster.agents.adam import ClippedAdam
from rl_cluster.agents.captured import Captured
from rl_cluster.agents.flat import FlatNetwork
from rl_cluster.agents.named import check_same, copy_into
from rl_cluster.agents.networks import QNetwork
from rl_cluster.agents.schedule import scheduled
from rl_cluster.agents.team import Team
from rl_cluster.agents.update import PendingUpdate, Update

_ROWS_WORTH_A_THREAD = 32
"""A smaller part of a batch costs nearly as much as this one: weights are read all the same."""


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions on the learner's device; a GPU's learner takes host memory, too."""

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

    def split(self, parts: int) -> list[Transitions]:
        """Cut into so many parts of nearly equal size, views of this batch."""
        cut = [tensor.tensor_split(parts) for tensor in vars(self).values()]
        return [Transitions(*tensors) for tensors in zip(*cut, strict=True)]


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


class DQN:
    """Online and target network, optimizer, and the update that joins them.

    Args:
      network: online network, taken over. target: of the same architecture, taken over.
      settings: may be replaced between two updates; only the learning rate and its schedule are
        read anew.
      threads: parts that a pass is cut into on a CPU, each with a thread of its own.
      micro_batch: transitions in one pass at most; a larger batch takes several, whose gradients
        are added up before the one step. None: all at once.
    """

    def __init__(
        self,
        network: QNetwork,
        target: QNetwork,
        settings: DQNSettings,
        threads: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.settings, self._micro_batch = settings, micro_batch
        dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
        self.online = FlatNetwork(network, dtype)
        self.target = FlatNetwork(target.requires_grad_(False), dtype)
        self.target.vector.copy_(self.online.vector)
        self.target.refresh()
        device = self.online.vector.device
        self._team = Team(threads)
        self.optimizer = ClippedAdam(
            self.online,
            epsilon=settings.adam_epsilon,
            max_norm=settings.max_gradient_norm,
            team=self._team,
        )
        self._gradients = [torch.zeros_like(self.online.vector) for _ in range(threads)]
        self._step = Captured(self._learn, device) if device.type == "cuda" else self._learn

    @property
    def published(self) -> Tensor:
        """(P,) float32: the online network's parameters, which a policy acts by."""
        return self.online.vector

    def learning_rate(self, updates: int) -> float:
        """Step size after so many updates."""
        return scheduled(self.settings.learning_rate, self.settings, updates)

    def change_learning_rate(self, rate: float) -> None:
        """Let the schedule go on from another step size."""
        self.settings = replace(self.settings, learning_rate=rate)

    def update(self, batch: Transitions, updates: int) -> Update:
        """One gradient step; `updates` is the number of steps taken before.

        Raises:
          SkippedBatch: something was not finite; nothing was changed.
        """
        return self.begin(batch, updates).result()

    def begin(self, batch: Transitions, updates: int) -> PendingUpdate:
        """Start one gradient step; a device works on while the caller goes on."""
        self.optimizer.learning_rate.fill_(self.learning_rate(updates))
        found = self._step(batch)
        if share := self._share_to_follow(updates + 1):
            self.target.vector.lerp_(self.online.vector, share * self.optimizer.taken)
            self.target.refresh()
        return PendingUpdate(found)

    def warm_up(self, batch: Transitions) -> None:
        """Take the memory that updates of this size need; nothing is learned from the batch.

        Raises:
          torch.OutOfMemoryError: the device is full.
        """
        self._step(replace(batch, weights=torch.full_like(batch.weights, torch.nan)))

    def _learn(self, batch: Transitions) -> Tensor:
        """(3 + B,) float32 loss, mean value, gradient norm, and TD errors of one step.

        Never waits for the device, so it can be captured as one graph. What a pass keeps for its
        gradient is free again before the next, so memory is that of one pass.
        """
        size = len(batch.a_tm1)
        passes = batch.split(-(-size // min(size, self._micro_batch or size)))
        count = max(1, min(len(passes[0].a_tm1) // _ROWS_WORTH_A_THREAD, self._team.size))
        found = []
        for number, rows in enumerate(passes):
            found += self._learn_pass(rows.split(count), size, first=number == 0)
        errors, losses_, q_means = zip(*found, strict=True)
        loss, q_mean = torch.stack(losses_).sum(), torch.stack(q_means).sum()
        norm = self.optimizer.step(self._gradients[:count], loss)
        return torch.cat([torch.stack([loss, q_mean, norm]), *errors])

    def _learn_pass(
        self, parts: list[Transitions], size: int, *, first: bool
    ) -> list[tuple[Tensor, ...]]:
        """Gradients of one pass, a thread for each part; the first pass's are set, others added."""
        keep = torch._foreach_copy_ if first else torch._foreach_add_

        def learn(numbered: tuple[int, Transitions]) -> tuple[Tensor, ...]:
            own = self.online.named(self._gradients[numbered[0]])
            return self._learn_part(numbered[1], size, len(parts) == 1, own, keep)

        return self._team.map(learn, list(enumerate(parts)))

    def _learn_part(
        self,
        part: Transitions,
        size: int,
        alone: bool,
        own: dict[str, Tensor],
        keep: Callable[[list[Tensor], list[Tensor]], object],
    ) -> tuple[Tensor, ...]:
        """Gradient of one part's share of the loss over `size` transitions, kept in `own`."""
        # A pass that is one part leaves the other threads free: one takes the targets.
        begin = self._team.begin if alone else lambda work: work
        target_tm1 = begin(lambda: self._targets(part))
        q_tm1 = self.online.network(part.s_tm1)
        errors = losses.td_errors(q_tm1, part.a_tm1, target_tm1())
        share = len(part.a_tm1) / size
        loss = losses.weighted_loss(errors, part.weights, self.settings.huber_delta) * share
        gradients = torch.autograd.grad(loss, list(self.online.network.parameters()))
        keep(list(own.values()), list(gradients))
        taken = q_tm1.detach().gather(1, part.a_tm1[:, None])
        return errors.detach(), loss.detach(), taken.mean() * share

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        q_t = self.target.network(batch.s_t)
        if not self.settings.double:
            return losses.q_learning_targets(batch.r_t, batch.discount_t, q_t)
        selector = self.online.network(batch.s_t)
        return losses.double_q_learning_targets(batch.r_t, batch.discount_t, q_t, selector)

    def _share_to_follow(self, updates: int) -> float:
        """How far the target goes towards the online network after so many updates.

        By averaging (Polyak & Juditsky 1992) a little each time, else all the way once a period.
        """
        if self.settings.target == "averaging":
            return self.settings.target_tau
        return float(updates % self.settings.target_period == 0)

    def model_tensors(self) -> dict[str, Tensor]:
        """Both networks' parameters by name, float32, for a checkpoint."""
        flats = {"online": self.online, "target": self.target}
        return {
            f"{prefix}.{name}": tensor
            for prefix, flat in flats.items()
            for name, tensor in flat.named(flat.vector).items()
        }

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Adam's state by parameter name, for a checkpoint."""
        moments = {
            f"{name}.{key}": tensor
            for key, moment in self.optimizer.moments.items()
            for name, tensor in self.online.named(moment).items()
        }
        return {"step": self.optimizer.steps, **moments}

    def load_tensors(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Continue from a checkpoint.

        Raises:
          ValueError: names or shapes differ from this agent's; nothing was changed.
        """
        own_model, own_optimizer = self.model_tensors(), self.optimizer_tensors()
        check_same(own_model, model, "model")
        check_same(own_optimizer, optimizer, "optimizer")
        copy_into(own_model, model)
        copy_into(own_optimizer, optimizer)
        self.optimizer.steps = optimizer["step"]
        self.online.refresh()
        self.target.refresh()
