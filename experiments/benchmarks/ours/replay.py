"""Our replay in one process as a side of B1: block builders, index, mapped blocks, gather.

`where` is the sample itself. Each of the tape's environments has its builder, as in a rollout; a
block that is sealed is indexed and mapped at once.
"""

from __future__ import annotations

import numpy as np
from replay_side import ALPHA, BATCH, BETA, DISCOUNT, N_STEP, Batch, run
from tape import ENVIRONMENTS, STACK, Chunk

from rl_cluster.replay.block import Block, BlockBuilder
from rl_cluster.replay.gather import BatchRing, MappedBlocks
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.transitions import TransitionRule

PACKAGES = ("rl-cluster", "numpy")
BLOCK_LENGTH = 32
RULE = TransitionRule(STACK, N_STEP, DISCOUNT, reward_clip=None)


class BlockMaker:
    """Cuts the tape into blocks as a rollout does: one builder an environment."""

    def __init__(self) -> None:
        self._builders = [
            BlockBuilder(
                f"tape/env/{env}", length=BLOCK_LENGTH, context=STACK - 1, tail=N_STEP,
                first_length=BLOCK_LENGTH * (env + 1) // ENVIRONMENTS,
            )
            for env in range(ENVIRONMENTS)
        ]  # fmt: skip
        self._arrived = [(0.0, True)] * ENVIRONMENTS
        """Reward and `first` of each environment's present row."""

    def add(self, chunks: list[Chunk]) -> list[Block]:
        """Append one chunk of each environment; return the blocks that it sealed."""
        return [block for env, chunk in enumerate(chunks) for block in self._add(env, chunk)]

    def _add(self, env: int, chunk: Chunk) -> list[Block]:
        sealed = []
        reward, first = self._arrived[env]
        ends = zip(chunk.terminated.tolist(), chunk.truncated.tolist(), strict=True)
        for i, (terminated, truncated) in enumerate(ends):
            at, action = chunk.rows_tm1[i, -1], int(chunk.actions[i])
            sealed.append(self._row(env, chunk.frames[at], action, reward, first=first))
            reward, first = float(chunk.rewards[i]), False
            if terminated or truncated:
                sealed.append(
                    self._row(env, chunk.frames[at + 1], 0, reward, terminated, truncated)
                )
                reward, first = 0.0, True
        self._arrived[env] = reward, first
        return [block for block in sealed if block is not None]

    def _row(
        self,
        env: int,
        frame: np.ndarray,
        action: int,
        reward: float,
        terminated: bool = False,
        truncated: bool = False,
        first: bool = False,
    ) -> Block | None:
        return self._builders[env].append(
            frame, action, reward,
            terminated=terminated, truncated=truncated, first=first, policy_version=0,
        )  # fmt: skip


class OurReplay:
    """`rl_cluster.replay`, without Ray."""

    heads = ENVIRONMENTS
    alpha = ALPHA
    differs = ""
    tolerance = 0.0

    def __init__(self, capacity: int) -> None:
        self._maker = BlockMaker()
        self._index = ReplayIndex(capacity, BLOCK_LENGTH, ALPHA, np.random.default_rng(0))
        self._mapped, self._ring = MappedBlocks(RULE, BLOCK_LENGTH), BatchRing(2)
        self._next_id = 0

    def insert(self, chunks: list[Chunk]) -> None:
        """Append rows; index and map what is sealed."""
        for block in self._maker.add(chunks):
            evicted = self._index.insert(self._next_id, block.info())
            self._mapped.insert(self._next_id, block)
            self._next_id += 1
            if evicted is not None:
                self._mapped.discard(evicted + 1)

    def sample(self) -> tuple[Batch, Sample]:
        """Draw from the index, gather from the blocks."""
        sample = self._index.sample(BATCH, BETA)
        found = self._mapped.gather(sample, self._ring)
        batch = Batch(
            found.s_tm1, found.a_tm1, found.r_t, found.discount_t, found.s_t, found.weights
        )
        return batch, sample

    @property
    def block_bytes(self) -> float:
        """Bytes of all blocks, for each transition in them."""
        return self._index.nbytes / self._index.transitions

    def update(self, where: Sample, priorities: np.ndarray) -> None:
        """Set priorities."""
        self._index.update_priorities(where, priorities)


if __name__ == "__main__":
    run(OurReplay, PACKAGES, lambda replay: {"block_bytes_per_transition": replay.block_bytes})
