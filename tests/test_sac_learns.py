"""Soft actor-critic solves what it should, from experience that others collected at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sac_samples import SHAPE, agent

from rl_cluster.agents.sac import SAC, Sequences
from rl_cluster.agents.sac_networks import SACShape
from rl_cluster.agents.sac_policy import RecurrentPolicy

SMALL = replace(SHAPE, hidden=64)


def rows(shape: SACShape, proprio: np.ndarray) -> np.ndarray:
    """(..., ROW) float32 observations with a dark view."""
    dark = np.zeros((*proprio.shape[:-1], shape.row - shape.proprio), np.float32)
    return np.concatenate([dark, proprio.astype(np.float32)], -1)


def batch_of(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> Sequences:
    """Sequences whose last row is never terminal unless `terminal` is set afterwards."""
    size, length = rewards.shape
    flags = torch.zeros(3, size, length, dtype=torch.bool)
    return Sequences(
        torch.from_numpy(observations).half(),
        torch.from_numpy(actions.astype(np.float32)),
        torch.from_numpy(rewards.astype(np.float32)),
        flags[0],
        flags[1],
        ~flags[2],
        torch.ones(size),
    )


def policy_of(sac: SAC) -> RecurrentPolicy:
    policy = RecurrentPolicy(sac.shape)
    policy.load(sac.published.numpy())
    return policy


def driven(x: np.ndarray, action: np.ndarray) -> np.ndarray:
    """A vehicle on a plane, pushed by two commands, in a box."""
    return np.clip(x + 0.3 * action, -1, 1)


def home(sac: SAC) -> float:
    """Mean distance from the middle after eight steps of the deterministic policy."""
    policy = policy_of(sac)
    x = np.random.default_rng(5).uniform(-1, 1, (64, 2))
    hx, cx = policy.start(64)
    for _ in range(8):
        seen = rows(sac.shape, np.pad(x, [(0, 0), (0, 1)]))
        actions, hx, cx = policy(seen, hx, cx)
        x = driven(x, actions)
    return float(np.linalg.norm(x, axis=1).mean())


def test_a_vehicle_learns_to_drive_home() -> None:
    sac = agent(SMALL, discount=0.8, tau=0.02, learning_rate=3e-3, actor_learning_rate=3e-3)
    rng, before = np.random.default_rng(0), home(sac)
    for update in range(300):
        x, action = rng.uniform(-1, 1, (2, 64, 2))
        x_t = driven(x, action)
        proprio = np.pad(np.stack([x, x_t], 1), [(0, 0), (0, 0), (0, 1)])
        rewards = np.stack([np.zeros(64), -np.square(x_t).sum(1)], 1)
        actions = np.stack([action, np.zeros_like(action)], 1)
        sac.update(batch_of(rows(SMALL, proprio), actions, rewards), update)
    assert before > 0.5
    assert home(sac) < 0.2


def goals_shown(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(64, 2) corners of a square, and the (64, 2, 3) proprioception that shows them once."""
    goals = rng.choice([-0.8, 0.8], (64, 2))
    proprio = np.zeros((64, 2, 3))
    proprio[:, 0, :2] = 5 * goals
    return goals, proprio


def recalled(sac: SAC) -> float:
    """Mean squared distance of the second action from the goal that only the first row showed."""
    policy = policy_of(sac)
    goals, proprio = goals_shown(np.random.default_rng(5))
    hx, cx = policy.start(64)
    for t in range(2):
        actions, hx, cx = policy(rows(sac.shape, proprio[:, t]), hx, cx)
    return float(np.square(actions - goals).sum(1).mean())


def test_only_a_memory_recalls_what_was_shown_before() -> None:
    found, rates = {}, {"learning_rate": 3e-3, "actor_learning_rate": 3e-3}
    for memory in ("lstm", "none"):
        shape = replace(SHAPE, hidden=256, memory=memory)  # type: ignore[arg-type]
        sac = agent(shape, unroll=2, discount=0.5, initial_alpha=0.02, **rates)
        rng = np.random.default_rng(0)
        for update in range(280):
            (goals, proprio), action = goals_shown(rng), rng.uniform(-1, 1, (64, 3, 2))
            rewards = np.zeros((64, 3))
            rewards[:, 2] = -np.square(action[:, 1] - goals).sum(1)
            batch = batch_of(
                rows(shape, np.pad(proprio, [(0, 0), (0, 1), (0, 0)])), action, rewards
            )
            batch.terminal[:, 2] = batch.ends[:, 2] = True
            sac.update(batch, update)
        found[memory] = recalled(sac)
    assert found["lstm"] < 0.3
    assert found["none"] > 1.0  # it can only guess: the goals' variance is 1.28
