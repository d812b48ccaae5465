"""cpprb's prioritized buffer as a side of B1: C++ trees, n-step returns made while inserting.

Configuration: `stack_compress` for both stacks (one stored frame each; also faster to draw from
than whole stacks), runs of 64 per `add`, read from one episode after the other as its compression
asks for. `next_of`, which would save the second frame, hands out no `next_obs` beside `Nstep`.
"""

from __future__ import annotations

from typing import Any

import cpprb
import numpy as np
from replay_side import ALPHA, BATCH, BETA, DISCOUNT, N_STEP, Batch, run
from tape import STACK, Chunk, stacked

PACKAGES = ("cpprb", "numpy")


class CpprbReplay:
    """`cpprb.PrioritizedReplayBuffer`, fed with Atari stacks."""

    heads = 1
    alpha = ALPHA
    differs = "an episode's last five transitions mix up their next stacks or bootstrap at its end"
    tolerance = 0.01

    def __init__(self, capacity: int) -> None:
        stack = {"shape": (84, 84, STACK), "dtype": np.uint8}
        self._buffer = cpprb.PrioritizedReplayBuffer(
            capacity,
            {"obs": stack, "next_obs": stack, "act": {"dtype": np.int64}, "rew": {}, "done": {}},
            alpha=ALPHA,
            stack_compress=["obs", "next_obs"],
            Nstep={"size": N_STEP, "gamma": DISCOUNT, "rew": "rew", "next": "next_obs"},
        )

    def insert(self, chunks: list[Chunk]) -> None:
        """Add runs that end where their episode does."""
        (chunk,) = chunks
        s_tm1 = np.moveaxis(stacked(chunk.frames, chunk.rows_tm1), 1, -1)
        s_t = np.moveaxis(stacked(chunk.frames, chunk.rows_t), 1, -1)
        ends = np.flatnonzero(chunk.terminated | chunk.truncated) + 1
        begin = 0
        for end in sorted({*ends.tolist(), len(chunk.actions)}):
            run = slice(begin, end)
            self._buffer.add(
                obs=s_tm1[run],
                next_obs=s_t[run],
                act=chunk.actions[run],
                rew=chunk.rewards[run].copy(),  # to which it adds the later rewards in place
                done=chunk.terminated[run],
            )
            if end in ends:
                self._buffer.on_episode_end()
            begin = end

    def sample(self) -> tuple[Batch, np.ndarray]:
        """Draw; the stack is the last axis of a view, so moving it forward copies nothing."""
        drawn: dict[str, Any] = self._buffer.sample(BATCH, BETA)
        batch = Batch(
            np.ascontiguousarray(np.moveaxis(drawn["obs"], -1, 1)),
            drawn["act"][:, 0],
            drawn["rew"][:, 0],
            np.float32(DISCOUNT**N_STEP) * (1 - drawn["done"][:, 0]),
            np.ascontiguousarray(np.moveaxis(drawn["next_obs"], -1, 1)),
            drawn["weights"],
        )
        return batch, drawn["indexes"]

    def update(self, where: np.ndarray, priorities: np.ndarray) -> None:
        """Set priorities."""
        self._buffer.update_priorities(where, priorities)


if __name__ == "__main__":
    run(CpprbReplay, PACKAGES)
