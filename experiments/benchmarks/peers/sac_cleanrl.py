"""The update of CleanRL's SAC as the side of B12, on one thread, eager and in float32.

CleanRL is a repository of single files, not a package, and its networks take vectors; so the update
of its `sac_continuous_action.py` is written here once more, step by step, around our layers: two
critics and their targets, a policy learned twice at every second step, a learned temperature,
`torch.optim.Adam` as it comes. What was left out: environment, buffer, logging.

Two forms: `separate`, as CleanRL has it, where policy and each critic have a trunk of their own;
and `shared`, where all use the critics' trunk as ours do and the policy's gradient ends before it.

Asked: network (of `sac_seen.SHAPES`), form.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple, Protocol

import torch
from sac_seen import SETTINGS, batches, shape_of
from serve import arguments, serve
from torch import Tensor, nn, optim
from torch.distributions import Normal
from torch.nn import functional as F

from rl_cluster.agents.sac import Sequences
from rl_cluster.agents.sac_networks import Actor, Critic, Heads, build_actor, build_critic

POLICY_PERIOD = 2


class Data(NamedTuple):
    """A batch as CleanRL's buffer hands it over, float32."""

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    dones: Tensor


def data_of(batch: Sequences) -> Data:
    """Sequences of two rows as transitions."""
    seen = batch.observations.float()
    ended = batch.terminal[:, 1].float()
    return Data(seen[:, 0], seen[:, 1], batch.actions[:, 0], batch.rewards[:, 1], ended)


class Networks(Protocol):
    """What the update works on; `seen` is what the policy's half of it reads observations as."""

    critics: nn.Module
    targets: nn.Module
    policy: nn.Module

    def values(self, critics: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """(2, B) of both critics."""

    def see(self, observations: Tensor) -> Tensor:
        """What `act` and `judge` take."""

    def act(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A) means and log standard deviations."""

    def judge(self, seen: Tensor, actions: Tensor) -> Tensor:
        """(2, B) of both critics."""


class Separate:
    """A trunk for the policy and one for each critic."""

    def __init__(self, critic: Critic, heads: Heads) -> None:
        self.critics = nn.ModuleList(_one_of(critic, i) for i in range(2))
        self.targets = copy.deepcopy(self.critics)
        self.policy = Actor(copy.deepcopy(critic.trunk), heads)

    def values(self, critics: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """See `Networks`."""
        ones: Any = critics
        return torch.cat([one(one.trunk.see(observations), actions) for one in ones])

    def see(self, observations: Tensor) -> Tensor:
        """See `Networks`."""
        return observations

    def act(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Networks`."""
        means, log_stds = self.policy.heads(self.policy.trunk.see(seen))
        return means, log_stds

    def judge(self, seen: Tensor, actions: Tensor) -> Tensor:
        """See `Networks`."""
        return self.values(self.critics, seen, actions)


class Shared:
    """One trunk, of the critics."""

    def __init__(self, critic: Critic, heads: Heads) -> None:
        self.critics, self.targets = critic, copy.deepcopy(critic)
        self.policy = heads

    def values(self, critics: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """See `Networks`."""
        both: Any = critics
        values: Tensor = both(both.trunk.see(observations), actions)
        return values

    @torch.no_grad()
    def see(self, observations: Tensor) -> Tensor:
        """See `Networks`."""
        return self.critics.trunk.see(observations)

    def act(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Networks`."""
        means, log_stds = self.policy(seen)
        return means, log_stds

    def judge(self, seen: Tensor, actions: Tensor) -> Tensor:
        """See `Networks`."""
        values: Tensor = self.critics(seen, actions)
        return values


class PlainSAC:
    """The update.

    Args:
      networks: what it trains.
      actions: A.
    """

    def __init__(self, networks: Networks, actions: int) -> None:
        self._networks = networks
        self._critics_step = optim.Adam(networks.critics.parameters(), SETTINGS.learning_rate)
        self._policy_step = optim.Adam(networks.policy.parameters(), SETTINGS.actor_learning_rate)
        self._log_alpha = torch.zeros(1, requires_grad=True)
        self._alpha = self._log_alpha.exp().item()
        self._alpha_step = optim.Adam([self._log_alpha], SETTINGS.alpha_learning_rate)
        self._target_entropy = -float(actions)

    def update(self, data: Data, step: int) -> float:
        """One step; the critics' loss."""
        loss = self._learn_values(data)
        if step % POLICY_PERIOD == 0:
            for _ in range(POLICY_PERIOD):
                self._learn_policy(data.observations)
        self._move_targets()
        return loss

    def _learn_values(self, data: Data) -> float:
        networks = self._networks
        with torch.no_grad():
            actions, log_pi = self._draw(networks.see(data.next_observations))
            values = networks.values(networks.targets, data.next_observations, actions)
            soft = values.amin(0) - self._alpha * log_pi
            wanted = data.rewards + (1 - data.dones) * SETTINGS.discount * soft
        first, second = networks.values(networks.critics, data.observations, data.actions)
        loss = F.mse_loss(first, wanted) + F.mse_loss(second, wanted)
        self._critics_step.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._critics_step.step()
        return loss.item()

    def _learn_policy(self, observations: Tensor) -> None:
        seen = self._networks.see(observations)
        actions, log_pi = self._draw(seen)
        loss = (self._alpha * log_pi - self._networks.judge(seen, actions).amin(0)).mean()
        self._policy_step.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._policy_step.step()
        with torch.no_grad():
            _, log_pi = self._draw(seen)
        alpha_loss = (-self._log_alpha.exp() * (log_pi + self._target_entropy)).mean()
        self._alpha_step.zero_grad()
        alpha_loss.backward()  # type: ignore[no-untyped-call]
        self._alpha_step.step()
        self._alpha = self._log_alpha.exp().item()

    def _draw(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A) actions and their (B,) log π."""
        means, log_stds = self._networks.act(seen)
        gaussian = Normal(means, log_stds.exp())
        before = gaussian.rsample()
        actions = torch.tanh(before)
        log_pi = gaussian.log_prob(before)  # type: ignore[no-untyped-call]
        return actions, (log_pi - torch.log(1 - actions.pow(2) + 1e-6)).sum(1)

    def _move_targets(self) -> None:
        pairs = zip(
            self._networks.critics.parameters(), self._networks.targets.parameters(), strict=True
        )
        for own, target in pairs:
            target.data.copy_(SETTINGS.tau * own.data + (1 - SETTINGS.tau) * target.data)


def _one_of(critic: Critic, index: int) -> Critic:
    """A critic with one value only."""
    one = copy.deepcopy(critic)
    del one.values[1 - index]
    return one


def main() -> None:
    """Start where ours starts, and serve."""
    asked = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = shape_of(asked["network"])
    heads, critic = build_actor(shape).heads, build_critic(shape)
    form: Any = {"separate": Separate, "shared": Shared}[asked["form"]]
    sac = PlainSAC(form(critic, heads), shape.actions)
    every, steps = [data_of(batch) for batch in batches(shape)], itertools.count()
    cycle = itertools.cycle(every)
    torch.manual_seed(1)
    facts = {"first_loss": sac.update(every[0], next(steps))}

    def update() -> float:
        sac.update(next(cycle), next(steps))
        return 1.0

    serve(update, ("torch",), lambda: facts)


if __name__ == "__main__":
    main()
