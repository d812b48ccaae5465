"""Soft actor-critic with a learned temperature, on sequences (Haarnoja et al. 2018).

A memory is learned as in Kapturowski et al. 2019: it starts empty, runs over the burn-in without a
gradient, and is unrolled over the trained steps.

Invariant: an update happens whole or not at all. All three gradients (critics with trunk, policy,
temperature) are taken at the same parameters; if a loss or a gradient is not finite, no parameter,
no moment and no target moves. The device decides that; the host waits once, for the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rl_cluster.agents import sac_losses as losses
from rl_cluster.agents.flat import FlatNetwork, num_parameters
from rl_cluster.agents.named import check_same, copy_into
from rl_cluster.agents.sac_networks import SACShape, State, Trunk, build_actor, build_critic
from rl_cluster.agents.schedule import scheduled
from rl_cluster.agents.trained import Trained
from rl_cluster.agents.update import PendingUpdate, Update

OTHERS = ("actor_loss", "alpha", "entropy")
"""What an update of this agent tells beside the usual."""


@dataclass(frozen=True)
class Sequences:
    """Runs of T = burn_in + unroll + n_step rows, in host memory or on the learner's device."""

    observations: Tensor
    """(B, T, ROW) float16 or float32; any finite number where the row is not valid."""
    actions: Tensor
    """(B, T, A) float32, taken at the row."""
    rewards: Tensor
    """(B, T) float32, arrived with the row."""
    terminal: Tensor
    """(B, T) bool: nothing can be earned after this row."""
    ends: Tensor
    """(B, T) bool: the row ended its episode."""
    valid: Tensor
    """(B, T) bool: there is such a row."""
    weights: Tensor
    """(B,) float32 importance weights."""

    def to(self, device: torch.device) -> Sequences:
        """The same on a device, without waiting; itself where it lies there."""
        return Sequences(*(each.to(device, non_blocking=True) for each in vars(self).values()))


@dataclass(frozen=True)
class SACSettings:
    """What the mathematics depends on, beside the networks."""

    discount: float = 0.99
    tau: float = 0.005
    """Share of the way that the target goes towards the critics at each update."""
    n_step: int = 1
    burn_in: int = 0
    """Rows that only fill the memory."""
    unroll: int = 1
    """Steps trained in one sequence."""
    target_entropy: float = -2.0
    initial_alpha: float = 0.1
    learning_rate: float = 3e-4
    """Of critics and trunk."""
    actor_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Of all three rates."""
    schedule_updates: int = 1_000_000
    schedule_factor: float = 0.1
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 10.0
    """Of each of the three gradients."""
    bfloat16: bool = False
    empty_cache_period: int = 0
    """Updates between two returns of unused memory to a GPU that others use, too; 0: never."""

    @property
    def rows(self) -> int:
        """T: rows of one sequence."""
        return self.burn_in + self.unroll + self.n_step


class Temperature(nn.Module):
    """log α, learned like a network."""

    def __init__(self, initial_alpha: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(initial_alpha).log())


@dataclass(frozen=True)
class Known:
    """Outputs of the trunks at the rows that an update looks at."""

    trained: Tensor
    """(B, S, F) with a gradient."""
    boots: Tensor
    """(B, S, F) without: where the returns end."""
    target_boots: Tensor
    """(B, S, F) of the target, there."""


class SAC:
    """Trunk, policy, critics, their target, temperature, and the update that joins them.

    Parameters follow torch's seed.

    Args:
      settings: may be replaced between two updates; only rates and their schedule are read anew.
      shape: of the networks.
      device: where they lie.
    """

    def __init__(self, settings: SACSettings, shape: SACShape, device: torch.device) -> None:
        self.settings, self.shape, self._device = settings, shape, device
        dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
        heads = build_actor(shape).heads.to(device)
        bounds = {"epsilon": settings.adam_epsilon, "max_norm": settings.max_gradient_norm}
        self.actor = Trained("actor", heads, dtype, "actor.heads.{}".format, **bounds)
        """The policy's heads; their trunk is the critics'."""
        critic = build_critic(shape).to(device)
        self.critic = Trained("critic", critic, dtype, _critics_name, **bounds)
        temperature = Temperature(settings.initial_alpha).to(device)
        self.temperature = Trained("log_alpha", temperature, torch.float32, str, **bounds)
        target = build_critic(shape).to(device).requires_grad_(False)
        self.target = FlatNetwork(target, dtype)
        self.target.vector.copy_(self.critic.flat.vector)
        self.target.refresh()
        self._trunk_size = num_parameters(target.trunk)

    @property
    def published(self) -> Tensor:
        """(P,) float32 copy of all that the policy needs, in the order of `Actor.parameters()`."""
        return torch.cat([self.critic.flat.vector[: self._trunk_size], self.actor.flat.vector])

    def learning_rate(self, updates: int) -> float:
        """The critics' step size after so many updates."""
        return scheduled(self.settings.learning_rate, self.settings, updates)

    def change_learning_rate(self, rate: float) -> None:
        """Let the schedules of critics and policy go on from another step size."""
        self.settings = replace(self.settings, learning_rate=rate, actor_learning_rate=rate)

    def update(self, batch: Sequences, updates: int) -> Update:
        """One step of all networks; `updates` is the number of steps taken before.

        Raises:
          SkippedBatch: something was not finite; nothing was changed.
          ValueError: the sequences have another length than the settings say.
        """
        return self.begin(batch, updates).result()

    def begin(self, batch: Sequences, updates: int) -> PendingUpdate:
        """Start one step; a device works on while the caller goes on.

        Raises:
          ValueError: the sequences have another length than the settings say.
        """
        self._check_rows(batch)
        found = self._learn(batch.to(self._device), self._noise(len(batch.weights)), updates)
        period = self.settings.empty_cache_period
        if period and self._device.type == "cuda" and (updates + 1) % period == 0:
            torch.cuda.empty_cache()
        return PendingUpdate(found, OTHERS)

    def warm_up(self, batch: Sequences) -> None:
        """Take the memory that updates of this size need; nothing is learned from the batch.

        Raises:
          torch.OutOfMemoryError: the device is full.
        """
        self._check_rows(batch)
        spoiled = vars(batch) | {"weights": torch.full_like(batch.weights, torch.nan)}
        with torch.random.fork_rng():
            noise = self._noise(len(batch.weights))
            self._learn(Sequences(**spoiled).to(self._device), noise, 0)

    def _noise(self, size: int) -> Tensor:
        """(2, B, S, A) of a standard Gaussian, drawn on the host: a resume draws the same."""
        noise = torch.randn(2, size, self.settings.unroll, self.shape.actions)
        return noise.to(self._device, non_blocking=True)

    def _check_rows(self, batch: Sequences) -> None:
        rows, wanted = batch.observations.shape[1], self.settings.rows
        if rows != wanted:
            raise ValueError(
                f"sequences of {rows} rows: burn_in + unroll + n_step is {wanted}; "
                "gather with the agent's settings"
            )

    def _learn(self, batch: Sequences, noise: Tensor, updates: int) -> Tensor:
        """(6 + B,) float32 figures and TD errors of one step; never waits for the device."""
        returns = self._returns(batch)
        trained = returns.trained
        known = self._known(batch, returns.rows)
        targets = self._targets(returns, known, noise[0])
        taken = batch.actions[:, self.settings.burn_in :][:, : self.settings.unroll]
        values = self.critic.flat.network(known.trained, taken)
        critic_loss = losses.critic_loss(values, targets, batch.weights, trained)
        actor_loss, temperature_loss, log_pi = self._policy_losses(known, noise[1], trained)
        norm = self._differentiate(critic_loss, actor_loss, temperature_loss)
        entropy = -losses.mean_where(log_pi, trained)
        q_mean = losses.mean_where(values.mean(0), trained)
        alpha = self.temperature.flat.network.log_alpha.exp()
        told = (critic_loss, q_mean, norm, actor_loss, alpha, entropy)
        figures = torch.stack(told).detach()
        self._step(figures, updates)
        errors = losses.absolute_errors(values, targets, trained)
        return torch.cat([figures, errors.detach()])

    def _returns(self, batch: Sequences) -> losses.Returns:
        return losses.n_step_returns(
            batch.rewards,
            batch.terminal,
            batch.ends,
            batch.valid,
            burn_in=self.settings.burn_in,
            unroll=self.settings.unroll,
            n_step=self.settings.n_step,
            discount=self.settings.discount,
        )

    def _policy_losses(
        self, known: Known, noise: Tensor, trained: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of policy and temperature, and (B, S) log π of the actions drawn for them."""
        log_alpha, seen = self.temperature.flat.network.log_alpha, known.trained.detach()
        mean, log_std = self.actor.flat.network(seen)
        actions, log_pi = losses.sample_action(mean, log_std, noise)
        values = self.critic.flat.network(seen, actions)
        entropy = self.settings.target_entropy
        return (
            losses.actor_loss(values, log_pi, log_alpha.exp(), trained),
            losses.temperature_loss(log_alpha, log_pi, entropy, trained),
            log_pi,
        )

    def _known(self, batch: Sequences, boots: Tensor) -> Known:
        """What both trunks know; (B, S) `boots` are the rows that returns end at."""
        trunk, target = self.critic.flat.network.trunk, self.target.network.trunk
        if trunk.memory is not None:
            return self._remembered(trunk, target, batch, boots)
        start, end = self.settings.burn_in, self.settings.burn_in + self.settings.unroll
        trained = trunk.see(batch.observations[:, start:end])
        with torch.no_grad():
            rows = trunk.split(_rows(batch.observations, boots).flatten(0, 1))
            behind, behind_target = (each.see_parts(*rows) for each in (trunk, target))
        return Known(trained, behind.view_as(trained), behind_target.view_as(trained))

    def _remembered(self, trunk: Trunk, target: Trunk, batch: Sequences, boots: Tensor) -> Known:
        start, end = self.settings.burn_in, self.settings.burn_in + self.settings.unroll
        goes_on, empty = _goes_on(batch), trunk.no_memory(len(boots))
        state = empty
        with torch.no_grad():
            every, _ = _run(target, batch.observations, goes_on, empty)
            if start:
                _, state = _run(trunk, batch.observations[:, :start], goes_on[:, :start], state)
        rows = slice(start, end)
        trained, state = _run(trunk, batch.observations[:, rows], goes_on[:, rows], state)
        with torch.no_grad():
            tail, _ = _run(trunk, batch.observations[:, end:], goes_on[:, end:], state)
            behind = _rows(torch.cat([trained, tail], 1), boots - start)
        return Known(trained, behind, _rows(every, boots))

    @torch.no_grad()
    def _targets(self, returns: losses.Returns, known: Known, noise: Tensor) -> Tensor:
        """(B, S) targets."""
        mean, log_std = self.actor.flat.network(known.boots)
        actions, log_pi = losses.sample_action(mean, log_std, noise)
        values = self.target.network(known.target_boots, actions)
        alpha = self.temperature.flat.network.log_alpha.exp()
        return losses.soft_targets(returns, values, log_pi, alpha)

    def _differentiate(self, critic: Tensor, actor: Tensor, temperature: Tensor) -> Tensor:
        """Gradients of the three losses, each kept; returns the () norm of all."""
        norms = [
            self.actor.differentiate(actor),
            self.temperature.differentiate(temperature),
            self.critic.differentiate(critic),
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @torch.no_grad()
    def _step(self, figures: Tensor, updates: int) -> None:
        """Move everything, if all figures are finite."""
        settings = self.settings
        verdict = torch.where(figures.isfinite().all(), 0.0, torch.nan)
        for trained, rate in (
            (self.critic, settings.learning_rate),
            (self.actor, settings.actor_learning_rate),
            (self.temperature, settings.alpha_learning_rate),
        ):
            trained.step(scheduled(rate, settings, updates), verdict)
        share = settings.tau * self.critic.optimizer.taken
        self.target.vector.lerp_(self.critic.flat.vector, share)
        self.target.refresh()

    def model_tensors(self) -> dict[str, Tensor]:
        """All parameters by name, float32, for a checkpoint; `actor.` is what a policy needs."""
        tensors = {
            name: tensor
            for trained in self._all()
            for name, tensor in trained.named(trained.flat.vector).items()
        }
        target = self.target.named(self.target.vector)
        return tensors | {f"target.{name}": tensor for name, tensor in target.items()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Each optimizer's state by parameter name, for a checkpoint."""
        tensors = {f"{each.name}.step": each.optimizer.steps for each in self._all()}
        for trained in self._all():
            for key, moment in trained.optimizer.moments.items():
                named = trained.named(moment)
                tensors |= {f"{name}.{key}": tensor for name, tensor in named.items()}
        return tensors

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
        for trained in self._all():
            trained.flat.refresh()
        self.target.refresh()

    def _all(self) -> tuple[Trained, Trained, Trained]:
        return self.actor, self.critic, self.temperature


def _critics_name(name: str) -> str:
    """A parameter's name in a checkpoint: the trunk is the policy's, whoever trains it."""
    return f"actor.{name}" if name.startswith("trunk.") else f"critic.{name}"


def _rows(known: Tensor, rows: Tensor) -> Tensor:
    """(B, S, ...) of (B, T, ...) at (B, S) rows."""
    starts = torch.arange(len(rows), device=rows.device)[:, None] * known.shape[1]
    flat = known.flatten(0, 1).index_select(0, (starts + rows).view(-1))
    return flat.view(*rows.shape, *known.shape[2:])


def _goes_on(batch: Sequences) -> Tensor:
    """(B, T) bool: the row before is there and of the same episode."""
    goes_on = torch.zeros_like(batch.valid)
    goes_on[:, 1:] = batch.valid[:, :-1] & ~batch.ends[:, :-1]
    return goes_on


def _run(trunk: Trunk, rows: Tensor, goes_on: Tensor, state: State) -> tuple[Tensor, State]:
    """(B, T, F) outputs of (B, T, ROW) rows, at least one, and the state behind them."""
    return trunk.remember(trunk.see(rows), goes_on, state)
