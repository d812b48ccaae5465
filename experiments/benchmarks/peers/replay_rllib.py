"""RLlib's prioritized episode buffer as a side of B1: episodes in Python lists, trees in Python.

Configuration: observations are whole stacks, as its Atari wrapper gives them, because what the
buffer samples has no frames before it to stack. Fragments of 64 steps, appended to their episode as
its DQN does. Assembling arrays from the sampled episodes is its learner connectors' work; we stack
directly, which is less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers import PrioritizedEpisodeReplayBuffer
from replay_side import ALPHA, BATCH, BETA, DISCOUNT, N_STEP, Batch, run
from tape import Chunk

PACKAGES = ("ray", "numpy")


class RllibReplay:
    """`PrioritizedEpisodeReplayBuffer`."""

    heads = 1
    alpha = ALPHA
    differs = "it never draws the last two transitions of an episode"
    tolerance = 0.0

    def __init__(self, capacity: int) -> None:
        self._buffer = PrioritizedEpisodeReplayBuffer(capacity, batch_size_B=BATCH, alpha=ALPHA)
        self._episode = SingleAgentEpisode()

    def insert(self, chunks: list[Chunk]) -> None:
        """Add fragments that end where their episode does."""
        (chunk,) = chunks
        ends = np.flatnonzero(chunk.terminated | chunk.truncated) + 1
        begin = 0
        for end in sorted({*ends.tolist(), len(chunk.actions)}):
            self._add(chunk, range(begin, end))
            if end in ends:
                self._episode = SingleAgentEpisode()
            begin = end

    def _add(self, chunk: Chunk, steps: range) -> None:
        rows = [chunk.rows_tm1[steps[0]], *(chunk.rows_t[step] for step in steps)]
        last = steps[-1]
        fragment = SingleAgentEpisode(
            id_=self._episode.id_,
            observations=[chunk.frames[row] for row in rows],
            actions=[int(chunk.actions[step]) for step in steps],
            rewards=[float(chunk.rewards[step]) for step in steps],
            terminated=bool(chunk.terminated[last]),
            truncated=bool(chunk.truncated[last]),
            t_started=self._episode.t,
            len_lookback_buffer=0,
        )
        self._episode = SingleAgentEpisode(id_=fragment.id_, t_started=fragment.t)
        self._buffer.add(fragment)

    def sample(self) -> tuple[Batch, None]:
        """Draw episodes of one step and stack them."""
        episodes: Any = self._buffer.sample(
            num_items=BATCH, n_step=N_STEP, gamma=DISCOUNT, beta=BETA
        )
        ends = np.array([episode.is_terminated for episode in episodes])
        batch = Batch(
            np.stack([episode.get_observations(0) for episode in episodes]),
            np.array([episode.get_actions(0) for episode in episodes]),
            np.array([episode.get_rewards(0) for episode in episodes], np.float32),
            np.float32(DISCOUNT**N_STEP) * ~ends,
            np.stack([episode.get_observations(1) for episode in episodes]),
            np.array([episode.extra_model_outputs["weights"][0] for episode in episodes]),
        )
        return batch, None

    def update(self, where: None, priorities: np.ndarray) -> None:
        """Set priorities of what was sampled last."""
        self._buffer.update_priorities(priorities)


if __name__ == "__main__":
    run(RllibReplay, PACKAGES)
