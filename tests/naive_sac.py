"""Soft actor-critic for comparison: one sequence and one row at a time, in plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_cluster.agents.sac import SAC, Sequences

BETA_1, BETA_2 = 0.9, 0.999


@dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1, with clipping."""

    parameters: list[Tensor]
    rate: float
    epsilon: float
    max_norm: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...]) -> None:
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
        scale = min(1.0, self.max_norm / norm)
        self.steps += 1
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            m.mul_(BETA_1).add_((1 - BETA_1) * scale * g)
            v.mul_(BETA_2).add_((1 - BETA_2) * (scale * g) ** 2)
            m_hat, v_hat = m / (1 - BETA_1**self.steps), v / (1 - BETA_2**self.steps)
            p -= self.rate * m_hat / (v_hat.sqrt() + self.epsilon)


class NaiveSAC:
    """The same update as an agent's, from the agent's parameters."""

    def __init__(self, sac: SAC) -> None:
        self.settings, self.shape = sac.settings, sac.shape
        self.heads = copy.deepcopy(sac.actor.flat.network)
        self.critic = copy.deepcopy(sac.critic.flat.network)
        self.target = copy.deepcopy(sac.target.network)
        self.log_alpha = sac.temperature.flat.network.log_alpha.detach().clone().requires_grad_()
        s = self.settings
        rest = (s.adam_epsilon, s.max_gradient_norm)
        self.optimizers = [
            Adam(list(self.critic.parameters()), s.learning_rate, *rest),
            Adam(list(self.heads.parameters()), s.actor_learning_rate, *rest),
            Adam([self.log_alpha], s.alpha_learning_rate, *rest),
        ]

    def update(self, batch: Sequences) -> tuple[list[float], list[float]]:
        """Take one step; return the losses of critics, policy, temperature, and the TD errors."""
        s, size = self.settings, len(batch.weights)
        noise = torch.randn(2, size, s.unroll, self.shape.actions)
        losses, steps, errors = [torch.zeros(())] * 3, 0, []
        for i in range(size):
            sizes = []
            for t in range(s.burn_in, s.burn_in + s.unroll):
                if not self._is_step(batch, i, t):
                    continue
                found, error = self._step_losses(batch, i, t, noise[:, i, t - s.burn_in])
                losses = [a + b for a, b in zip(losses, found, strict=True)]
                sizes.append(error)
                steps += 1
            errors.append(sum(sizes) / max(1, len(sizes)))
        losses = [loss / steps for loss in losses]
        self._move(losses)
        return [loss.item() for loss in losses], errors

    def _is_step(self, batch: Sequences, i: int, t: int) -> bool:
        return bool(batch.valid[i, t] and batch.valid[i, t + 1] and not batch.ends[i, t])

    def _known(self, trunk: Any, batch: Sequences, i: int, t: int) -> Tensor:
        """The trunk's outputs at a row, stepped there from the start of what is known of it."""
        hx = cx = torch.zeros(1, 256)
        for row in range(t + 1):
            if not batch.valid[i, row]:
                continue
            if row and (batch.ends[i, row - 1] or not batch.valid[i, row - 1]):
                hx = cx = torch.zeros(1, 256)
            grad = row >= self.settings.burn_in
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                numbers = batch.observations[i, row].float()
                cells = numbers[: math.prod(self.shape.bev)].view(1, *self.shape.bev)
                known, hx, cx = trunk(cells, numbers[-self.shape.proprio :][None], hx, cx)
        return known

    def _target(self, batch: Sequences, i: int, t: int, noise: Tensor) -> Tensor:
        total, k = 0.0, t
        while k < t + self.settings.n_step and not (k > t and batch.ends[i, k]):
            if not batch.valid[i, k + 1]:
                break
            k += 1
            total += self.settings.discount ** (k - 1 - t) * batch.rewards[i, k].item()
        if batch.terminal[i, k]:
            return torch.tensor([total])
        with torch.no_grad():
            action, log_pi = self._act(self._known(self.critic.trunk, batch, i, k), noise)
            values = self.target(self._known(self.target.trunk, batch, i, k), action)
            soft = values.min(0).values - self.log_alpha.exp() * log_pi
        return total + self.settings.discount ** (k - t) * soft

    def _act(self, known: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.heads(known)
        gaussian = torch.distributions.Normal(mean, log_std.exp())
        before = mean + log_std.exp() * noise
        action = torch.tanh(before)
        return action, (gaussian.log_prob(before) - torch.log(1 - action**2)).sum(-1)

    def _step_losses(
        self, batch: Sequences, i: int, t: int, noise: Tensor
    ) -> tuple[list[Tensor], float]:
        target = self._target(batch, i, t, noise[0])
        known = self._known(self.critic.trunk, batch, i, t)
        values = self.critic(known, batch.actions[i, t][None])
        critic = batch.weights[i] * 0.5 * ((values - target) ** 2).sum()
        action, log_pi = self._act(known.detach(), noise[1])
        alpha, best = self.log_alpha.exp(), self.critic(known.detach(), action).min(0).values
        actor = (alpha.detach() * log_pi - best).sum()
        temperature = (-alpha * (log_pi.detach() + self.settings.target_entropy)).sum()
        return [critic, actor, temperature], (values - target).abs().mean().item()

    def _move(self, losses: list[Tensor]) -> None:
        gradients = [
            torch.autograd.grad(loss, optimizer.parameters, retain_graph=True)
            for loss, optimizer in zip(losses, self.optimizers, strict=True)
        ]
        for optimizer, each in zip(self.optimizers, gradients, strict=True):
            optimizer.step(each)
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow += self.settings.tau * (fast - slow)
