"""Two agents for the GPU's benchmark: eager PyTorch as one would write it, and ours.

Invariant: both start from the same parameters and compute the same, which is checked.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_cluster.agents.dqn import DQN, DQNSettings, Transitions
from rl_cluster.agents.networks import QNetwork
from rl_cluster.agents.update import PendingUpdate

ACTIONS, STACK, FRAME = 6, 4, (84, 84)
BATCHES = {"cuda": (32, 128, 512), "cpu": (16, 32, 64)}
"""A CPU only tries the script."""
STEPS_AHEAD = 2
"""Updates under way on a GPU, as the learner has them."""
SETTINGS = DQNSettings(
    True, 1.0, 2.5e-4, "constant", 1, 1.0, 1.5e-4, 10.0, True, "period", 1_000, 0.005
)


class Network(NamedTuple):
    """What a network is made of."""

    conv_channels: tuple[int, ...]
    hidden: int


NETWORKS = {"Nature": Network((32, 64, 64), 512), "tiny": Network((16, 32), 256)}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class PlainNetwork(nn.Module):
    """The same dueling network, written as one would."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        depth = STACK
        geometry = ((8, 4), (4, 2), (3, 1))
        for filters, (kernel, stride) in zip(network.conv_channels, geometry, strict=False):
            layers += [nn.Conv2d(depth, filters, kernel, stride), nn.ReLU()]
            depth = filters
        self.torso = nn.Sequential(*layers, nn.Flatten())
        features, hidden = self.torso(torch.zeros(1, STACK, *FRAME)).shape[1], network.hidden
        self.advantage, self.value = (
            nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
            for outputs in (ACTIONS, 1)
        )

    def forward(self, observations: Tensor) -> Tensor:
        """(B, A) action values."""
        features = self.torso(observations.float() / 255)
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(1, keepdim=True)


class PlainDQN:
    """Eager double DQN with importance weights."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self.online, self.target = (PlainNetwork(network).to(device) for _ in range(2))
        self.target.load_state_dict(self.online.state_dict())
        self._optimizer = torch.optim.Adam(
            self.online.parameters(), SETTINGS.learning_rate, eps=SETTINGS.adam_epsilon, fused=True
        )
        self._steps = 0

    def update(self, batch: Transitions) -> tuple[float, Tensor]:
        """One step; its loss and (B,) TD errors, on the host."""
        with torch.autocast(batch.r_t.device.type, torch.bfloat16):
            with torch.no_grad():
                best = self.online(batch.s_t).argmax(1, keepdim=True)
                value = self.target(batch.s_t).gather(1, best).squeeze(1)
            taken = self.online(batch.s_tm1).gather(1, batch.a_tm1[:, None]).squeeze(1)
        wanted = batch.r_t + batch.discount_t * value.float()
        losses = F.huber_loss(taken.float(), wanted, reduction="none")
        loss = (batch.weights * losses).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.online.parameters(), SETTINGS.max_gradient_norm)
        self._optimizer.step()
        self._steps += 1
        if self._steps % SETTINGS.target_period == 0:
            self.target.load_state_dict(self.online.state_dict())
        return loss.item(), (wanted - taken).detach().cpu()


class OurDQN:
    """The agent, with the steps ahead that its learner takes."""

    def __init__(self, plain: PlainDQN, network: Network, device: torch.device) -> None:
        online, target = (
            QNetwork((STACK, *FRAME), ACTIONS, dueling=True, **network._asdict()).to(device)
            for _ in range(2)
        )
        with torch.no_grad():
            for ours, theirs in zip(online.parameters(), plain.online.parameters(), strict=True):
                ours.copy_(theirs)
        self.agent = DQN(online, target, SETTINGS)
        self._steps = 0
        self._ahead = STEPS_AHEAD if device.type == "cuda" else 0
        self._under_way: deque[PendingUpdate] = deque()

    def begin(self, batch: Transitions) -> None:
        """Begin a step, and wait for one that began earlier."""
        self._under_way.append(self.agent.begin(batch, self._steps))
        self._steps += 1
        self.finish(self._ahead)

    def finish(self, ahead: int = 0) -> None:
        """Wait until only so many steps are under way."""
        while len(self._under_way) > ahead:
            self._under_way.popleft().result()


def some_transitions(size: int, device: torch.device) -> Transitions:
    """A random batch that lies on the device."""
    frames = [
        torch.randint(0, 256, (size, STACK, *FRAME), dtype=torch.uint8, device=device)
        for _ in range(2)
    ]
    rewards, weights = torch.randn(size, device=device), torch.rand(size, device=device)
    actions = torch.randint(0, ACTIONS, (size,), device=device)
    discounts = torch.full((size,), 0.97, device=device)
    return Transitions(frames[0], actions, rewards, discounts, frames[1], weights)


def check_same(plain: PlainDQN, ours: OurDQN, batch: Transitions) -> None:
    """Both learn the same from a batch; and ours, on a GPU, begins to without waiting.

    Raises:
      RuntimeError: they do not.
    """
    for step in range(2):
        loss, errors = plain.update(batch)
        found = ours.agent.update(batch, step)
        # The mean: where two actions are worth the same, rounding decides which one counts.
        apart = (errors - found.td_errors).abs().mean().item()
        if not np.isclose(loss, found.loss, rtol=0.01) or apart > 0.01:
            raise RuntimeError(
                f"update {step}: loss {found.loss} where eager PyTorch finds {loss}, "
                f"TD errors {apart} apart"
            )
    if batch.r_t.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        pending = ours.agent.begin(batch, 1)
        torch.cuda.set_sync_debug_mode("default")
        pending.result()
