"""One message of steps becomes blocks: rows of what arrived with each observation.

Invariant: every training step whose result is known (a reward and the next observation, or an end
behind which nothing is worth anything) is the start of exactly one transition of one block, and no
transition joins two messages, two episodes, or steps around an evaluation.

A message has (s_t, a_t, r_t, done_t) with r_t and done_t the results of a_t; a block has rewards
one row later. A segment (training steps of one episode, m of them) has the rows of its m
observations and, where it ends an episode, one more: the end. Its observation is unknown and stands
for nothing, since nothing is worth anything behind an end; it repeats the last one. Where the
message ends within an episode, or a limit of time ends it, the last step's next observation is not
known: no transition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rl_cluster.replay.block import Block
from rl_cluster.streams.codec import ACTIONS, BEV_SHAPE, PROPRIO, Experience

BEV_NUMBERS = int(np.prod(BEV_SHAPE))
ROW = BEV_NUMBERS + PROPRIO
"""Numbers of one observation: the bird's-eye view in C order, then what the rover says of itself.
In blocks they are float16."""
_SPARSE = 8
"""Views are sparse where one number in so many is not 0."""


@dataclass(frozen=True)
class _Segment:
    """Training steps [start, end) of one episode."""

    start: int
    end: int
    terminated: bool
    """The last of them ended the episode, and not because its time was up."""
    starts_episode: bool
    """The step before the first ended one."""

    @property
    def transitions(self) -> int:
        return self.end - self.start - (not self.terminated)


def cut(
    experience: Experience,
    *,
    source: str,
    message: str,
    position: int,
    policy_version: int,
    length: int,
) -> list[Block]:
    """The blocks of a message, without evaluation steps; none where no step's result is known.

    Args:
      experience: the message.
      source: of its blocks.
      message: its identity; block k gets `message#k`.
      position: in the stream; the blocks' `sequence`.
      policy_version: of all its steps; -1: none.
      length: core rows of a block; what is longer becomes blocks that overlap by a row.
    """
    blocks: list[Block] = []
    for segment in _segments(experience):
        for low in range(0, segment.transitions, length):
            high = min(low + length, segment.transitions)
            rows = _rows(experience, segment, low, high + 1)
            versions = np.full(high + 1 - low, policy_version, np.int32)
            name = f"{message}#{len(blocks)}"
            blocks.append(
                Block(
                    source,
                    position,
                    context=0,
                    core=high - low,
                    policy_versions=versions,
                    message=name,
                    **rows,
                )
            )
    return blocks


def _segments(experience: Experience) -> Iterator[_Segment]:
    dones, is_eval = experience.dones, experience.is_eval
    splits = np.flatnonzero(dones[:-1] | (is_eval[1:] != is_eval[:-1])) + 1
    bounds = [0, *splits.tolist(), experience.steps]
    terminal = dones.copy()
    terminal[list(experience.metadata.truncated_steps)] = False
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        if not is_eval[start]:
            known_start = start > 0 and bool(dones[start - 1])
            yield _Segment(start, end, bool(terminal[end - 1]), known_start)


def _rows(experience: Experience, segment: _Segment, low: int, high: int) -> dict[str, np.ndarray]:
    """Arrays of the segment's rows [low, high); the row behind its last step is its end."""
    count, steps = high - low, segment.end - segment.start
    known = min(high, steps) - low
    at = slice(segment.start + low, segment.start + low + known)
    observations = np.empty((count, ROW), np.float16)
    _put_views(experience.bev[at].reshape(known, BEV_NUMBERS), observations[:known, :BEV_NUMBERS])
    observations[:known, BEV_NUMBERS:] = experience.proprio[at]
    observations[known:] = observations[known - 1]
    actions = np.zeros((count, ACTIONS), np.float32)
    actions[:known] = experience.actions[at]
    results = experience.rewards[segment.start : segment.end]
    row = np.arange(count)
    return {
        "observations": observations,
        "actions": actions,
        "rewards": np.concatenate([np.zeros(1, np.float32), results])[low:high],
        "terminated": row == known,
        "truncated": np.zeros(count, np.bool_),
        "first": (row == 0) & (low == 0 and segment.starts_episode),
    }


def _put_views(views: np.ndarray, into: np.ndarray) -> None:
    """Copy float32 to float16 (n, BEV_NUMBERS).

    numpy takes 2 ns a number for that, whatever the number is, and nearly all of a view are 0: to
    find those that are not takes a fifth of it.
    """
    lit = views.view(np.uint32) != 0
    if np.count_nonzero(lit) * _SPARSE > views.size:
        into[...] = views
        return
    rows, columns = np.divmod(np.flatnonzero(lit), BEV_NUMBERS)
    into[...] = 0
    into[rows, columns] = views[rows, columns]
