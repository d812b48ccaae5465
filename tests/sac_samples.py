"""Small soft actor-critics and sequences, real in every part, for the tests of learning."""

from __future__ import annotations

from dataclasses import replace

import torch

from rl_cluster.agents.sac import SAC, SACSettings, Sequences
from rl_cluster.agents.sac_networks import SACShape

# Networks this small are slower on two threads than on one, and far slower on busy cores.
torch.set_num_threads(1)

SHAPE = SACShape(bev=(2, 9, 9), proprio=3, conv_channels=(4,), features=8, memory="none", hidden=16)
RECURRENT = replace(SHAPE, memory="lstm")
SETTINGS = SACSettings(learning_rate=1e-3, actor_learning_rate=2e-3, alpha_learning_rate=3e-3)
Tensors = dict[str, torch.Tensor]


def agent(shape: SACShape = SHAPE, *, seed: int = 0, **settings: object) -> SAC:
    """An agent whose parameters follow from `seed`."""
    torch.manual_seed(seed)
    return SAC(replace(SETTINGS, **settings), shape, torch.device("cpu"))  # type: ignore[arg-type]


def sequences(seed: int, sac: SAC, size: int = 6) -> Sequences:
    """A batch with ends of both kinds, and rows missing at both sides of some sequences.

    The row at `burn_in` always starts a step, as a sampled one does.
    """
    random = torch.Generator().manual_seed(seed)
    settings, rows = sac.settings, sac.settings.rows

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random)

    valid = torch.ones(size, rows, dtype=torch.bool)
    for i in range(size):
        before = int(uniform(1) * (settings.burn_in + 1)) if i % 2 else 0
        behind = int(uniform(1) * (rows - settings.burn_in - 1)) if i % 3 == 1 else 0
        valid[i, :before] = False
        valid[i, rows - behind :] = False
    ends = (uniform(size, rows) < 0.3) & valid
    ends[:, settings.burn_in] = False
    return Sequences(
        observations=uniform(size, rows, sac.shape.row).half() * valid[..., None],
        actions=uniform(size, rows, sac.shape.actions) * 2 - 1,
        rewards=torch.randn(size, rows, generator=random),
        terminal=ends & (uniform(size, rows) < 0.5),
        ends=ends,
        valid=valid,
        weights=uniform(size) + 0.1,
    )


def everything(sac: SAC) -> Tensors:
    """A copy of all that an update may change: networks, temperature and Adam's states."""
    held = {**sac.model_tensors(), **sac.optimizer_tensors()}
    return {name: tensor.clone() for name, tensor in held.items()}
