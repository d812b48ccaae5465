"""Small agents and batches, real in every part, for the tests of learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

from rl_cluster.agents.dqn import DQN, DQNSettings, Transitions
from rl_cluster.agents.networks import QNetwork
from rl_cluster.replay.gather import Batch
from rl_cluster.replay.index import Sample

# Networks this small are slower on two threads than on one, and far slower on busy cores.
torch.set_num_threads(1)

ACTIONS = 3
IMAGE = (2, 12, 12)
VECTOR = (2, 4)
SETTINGS = DQNSettings(
    double=True,
    huber_delta=1.0,
    learning_rate=1e-3,
    schedule="constant",
    schedule_updates=10,
    schedule_factor=0.1,
    adam_epsilon=1e-4,
    max_gradient_norm=10.0,
    bfloat16=False,
    target="period",
    target_period=1_000,
    target_tau=0.1,
)


def network(
    shape: tuple[int, ...] = VECTOR,
    *,
    conv_channels: tuple[int, ...] = (4,),
    hidden: int = 8,
    dueling: bool = True,
) -> QNetwork:
    return QNetwork(shape, ACTIONS, conv_channels=conv_channels, hidden=hidden, dueling=dueling)


def agent(
    shape: tuple[int, ...] = VECTOR,
    *,
    seed: int = 0,
    hidden: int = 8,
    threads: int = 1,
    micro_batch: int | None = None,
    **settings: object,
) -> DQN:
    """An agent whose parameters follow from `seed`."""
    torch.manual_seed(seed)
    chosen = replace(SETTINGS, **settings)  # type: ignore[arg-type]
    online, target = (network(shape, hidden=hidden) for _ in range(2))
    return DQN(online, target, chosen, threads, micro_batch)


def batch(seed: int, shape: tuple[int, ...] = VECTOR, size: int = 6) -> Batch:
    """A batch as the gather makes it: uint8 images or float32 vectors, some rows terminal."""
    rng = np.random.default_rng(seed)

    def observations() -> np.ndarray:
        if len(shape) == 3:
            return rng.integers(0, 256, (size, *shape), np.uint8)
        return rng.normal(size=(size, *shape)).astype(np.float32)

    return Batch(
        s_tm1=observations(),
        a_tm1=rng.integers(ACTIONS, size=size),
        r_t=rng.normal(size=size).astype(np.float32),
        discount_t=np.where(rng.random(size) < 0.3, 0.0, 0.97).astype(np.float32),
        s_t=observations(),
        weights=rng.uniform(0.1, 1.0, size).astype(np.float32),
        sample=Sample(np.zeros(size, np.int64), np.arange(size), np.ones(size, np.float32)),
        sources=tuple(f"rollout/0/env/{i % 2}" for i in range(size)),
    )


def transitions(seed: int, shape: tuple[int, ...] = VECTOR, size: int = 6) -> Transitions:
    """The same as tensors."""
    made = batch(seed, shape, size)
    names = ("s_tm1", "a_tm1", "r_t", "discount_t", "s_t", "weights")
    return Transitions(*(torch.from_numpy(getattr(made, name)) for name in names))


def everything(dqn: DQN) -> dict[str, torch.Tensor]:
    """A copy of all that an update may change: both networks and Adam's state."""
    held = {**dqn.model_tensors(), **dqn.optimizer_tensors()}
    return {name: tensor.clone() for name, tensor in held.items()}


def flatten(network: torch.nn.Module) -> np.ndarray:
    """(P,) float32 copy of all parameters, in the module's order."""
    flat: np.ndarray = parameters_to_vector(network.parameters()).detach().float().numpy()
    return flat


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
