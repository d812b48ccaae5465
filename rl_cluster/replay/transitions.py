"""Transitions of one block: n-step returns, discounts, and where the two stacks lie.

Notation of DQN Zoo: the transition that starts at row k is (s_tm1, a_tm1, r_t, discount_t, s_t)
with r_t = Σ_{i=1..m} γ^{i-1} r_{k+i} and s_t the stack at row k + m. Invariant: m is n, or fewer
when the episode ends first, so a transition never leaves its episode; discount_t is γ^m, or 0 where
row k + m is terminal. A truncation keeps γ^m: it says nothing of the value behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl_cluster.replay.block import Block


@dataclass(frozen=True)
class TransitionRule:
    """How rows become transitions."""

    frame_stack: int
    n_step: int
    discount: float
    reward_clip: float | None


@dataclass(frozen=True)
class BlockTransitions:
    """All transitions of one block, indexed by core row; meaningless where a row starts none."""

    observations: np.ndarray
    """(rows, *obs_shape), the block's own memory."""
    rows_tm1: np.ndarray
    """(core, stack) int32: rows of the stack s_tm1, oldest first."""
    rows_t: np.ndarray
    """(core, stack) int32: rows of the stack s_t."""
    contiguous: np.ndarray
    """(core,) bool: neither stack repeats a row."""
    actions: np.ndarray
    """(core,) int64: a_tm1."""
    rewards: np.ndarray
    """(core,) float32: r_t, the n-step return before the bootstrap."""
    discounts: np.ndarray
    """(core,) float32: discount_t."""
    source: str


def block_transitions(block: Block, rule: TransitionRule) -> BlockTransitions:
    """Derive the transitions that start in a block (return: Sutton & Barto 2018, eq. 12.1).

    Raises:
      ValueError: the block was cut for a smaller stack or fewer steps.
    """
    core = np.arange(block.context, block.context + block.core)
    _check_deep_enough(block, rule)
    reward = block.rewards if rule.reward_clip is None else np.clip(
        block.rewards, -rule.reward_clip, rule.reward_clip)  # fmt: skip
    end = block.terminated | block.truncated
    r_t = np.zeros(block.core, np.float32)
    steps = np.zeros(block.core, np.int64)
    going = ~end[core]
    for i in range(1, rule.n_step + 1):
        row = core + i
        r_t += going * np.float32(rule.discount ** (i - 1)) * reward[row]
        steps += going
        going = going & ~end[row]
    last = core + steps
    powers = np.array([rule.discount**m for m in range(rule.n_step + 1)], np.float32)
    discount_t = powers[steps] * ~block.terminated[last]
    rows_tm1 = _stack_rows(block.first, core, rule.frame_stack)
    rows_t = _stack_rows(block.first, last, rule.frame_stack)
    # A stack that starts later in the same episode repeats nothing that the first one does not.
    repeats = (np.diff(rows_tm1) == 0).any(1)
    return BlockTransitions(
        block.observations,
        rows_tm1.astype(np.int32),
        rows_t.astype(np.int32),
        ~repeats,
        block.actions[core].astype(np.int64),
        r_t,
        discount_t,
        block.source,
    )


def _check_deep_enough(block: Block, rule: TransitionRule) -> None:
    tail = len(block.observations) - block.context - block.core
    if block.context < rule.frame_stack - 1 or tail < rule.n_step:
        raise ValueError(
            f"block {block.sequence} of {block.source} has {block.context} rows before its core "
            f"and {tail} behind it: too few for a stack of {rule.frame_stack} and n = {rule.n_step}"
        )


def _stack_rows(first: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    """(len(rows), depth): the `depth` rows up to each, none before its episode's first row."""
    every = np.arange(len(first))
    episode_start = np.maximum.accumulate(np.where(first, every, 0))
    back = np.arange(depth - 1, -1, -1)
    stacks: np.ndarray = np.maximum(rows[:, None] - back, episode_start[rows][:, None])
    return stacks
