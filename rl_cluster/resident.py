"""Replay whose frames lie on the learner's device: a batch is gathered where it is learned from.

Invariant: a block's frames cross the bus once, when it is inserted; for a batch only row numbers
do. All that writes to the device here does so in one order, on a stream of its own: a place is
filled anew only behind the gathers that read it, and a batch says what its reader waits for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl_cluster.agents.captured import as_torch, on_device, page_locked
from rl_cluster.replay.block import Block, schema_of
from rl_cluster.replay.gather import (
    Allocate,
    Batch,
    BatchRing,
    BlockSource,
    MappedBlocks,
    TransitionTable,
)
from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import TransitionRule, block_transitions

if TYPE_CHECKING:
    from rl_cluster.config import TaskConfig
    from rl_cluster.environments import EnvironmentSpec

_BATCHES_AHEAD = 8  # that samples may lag behind inserts, or that are on their way
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def resident_places(task: TaskConfig) -> int:
    """Blocks held on the device: the replay's, and those that come before evicted ones go.

    The ratio bounds the latter; four times that, since blocks may hold few transitions.
    """
    rollout, replay = task.rollout, task.replay
    kept = max(2, math.ceil(replay.capacity_transitions / rollout.block_length))
    ahead = _BATCHES_AHEAD * task.learner.batch / replay.samples_per_insert
    collected = (rollout.actors + 1) * rollout.blocks_per_collect
    return kept + 4 * (collected + math.ceil(ahead / rollout.block_length))


def resident_bytes(task: TaskConfig, spec: EnvironmentSpec) -> int:
    """Memory of the device that a task's frames take."""
    rows = _rows(task.agent.frame_stack, task.rollout.block_length, task.agent.n_step)
    return resident_places(task) * rows * math.prod(spec.obs_shape) * spec.obs_dtype.itemsize


def _rows(frame_stack: int, length: int, n_step: int) -> int:
    """Frames of the longest block."""
    return frame_stack - 1 + length + n_step


class ResidentBlocks(TransitionTable):
    """The blocks that are drawn from, with their frames on a device.

    Args:
      rule: how rows become transitions.
      length: core rows of the longest block.
      places: blocks that are held at most.
      obs_shape: of one frame.
      obs_dtype: of whole numbers, so that no batch need be searched for NaN.
      device: its memory for all blocks is taken now, so that a full one fails at the start.
    """

    def __init__(
        self,
        rule: TransitionRule,
        length: int,
        places: int,
        obs_shape: tuple[int, ...],
        obs_dtype: np.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(rule, length)
        self._obs_shape, self._obs_dtype, self._device = obs_shape, obs_dtype, device
        self._sources: dict[int, str] = {}
        self._rows = _rows(rule.frame_stack, length, rule.n_step)
        self._rows_tm1 = np.zeros((0, length, rule.frame_stack), np.int32)
        self._rows_t = np.zeros((0, length, rule.frame_stack), np.int32)
        self._grow(places)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            allocate = on_device(device)
            self._frames = allocate((places * self._rows, *obs_shape), obs_dtype)

    def insert(self, block_id: int, block: Block) -> None:
        """Hold a block: begin to copy its frames to the device; ids come in any order.

        Raises:
          ValueError: it was cut otherwise, or holds other frames, than was said.
          MemoryError: evicted blocks are not let go of.
        """
        self._check_fits(block)
        mapped = block_transitions(block, self._rule)
        if not self._free:
            raise MemoryError(f"all {self._size} places for blocks on {self._device} are taken")
        place, rows = self._put(block_id, mapped), len(mapped.actions)
        first = place * self._rows
        self._rows_tm1[place, :rows] = first + mapped.rows_tm1
        self._rows_t[place, :rows] = first + mapped.rows_t
        self._sources[block_id] = block.source
        with torch.cuda.stream(self._stream):
            frames = self._sendable(block.observations)
            self._frames[first : first + len(frames)].copy_(frames, non_blocking=True)

    def discard(self, below: int) -> None:
        """Let go of all blocks with smaller ids."""
        for block_id in self._drop(below):
            del self._sources[block_id]

    def gather(self, sample: Sample, ring: BatchRing[Tensor]) -> Batch[Tensor]:
        """Begin to copy the sampled transitions into the ring's next memory, on the device.

        Raises:
          KeyError: a sampled block is not held.
        """
        block_ids = sample.block_ids.tolist()
        at = [self._places[block_id] for block_id in block_ids], sample.rows
        rows = np.stack([self._rows_tm1[at], self._rows_t[at]])
        with torch.cuda.stream(self._stream):
            s_tm1, s_t = ring.next((*rows.shape[1:], *self._obs_shape), self._obs_dtype)
            indices = self._sendable(rows).to(self._device, non_blocking=True).flatten(1)
            frames = _as_words(self._frames, len(self._frames))
            for target, index in zip((s_tm1, s_t), indices, strict=True):
                torch.index_select(frames, 0, index, out=_as_words(target, len(index)))
            wait = Gathered(self._stream)
        return Batch(
            s_tm1,
            self._actions[at],
            self._rewards[at],
            self._discounts[at],
            s_t,
            sample.weights,
            sample,
            tuple(self._sources[block_id] for block_id in block_ids),
            wait,
        )

    def _check_fits(self, block: Block) -> None:
        rows, schema = len(block.observations), schema_of(self._obs_shape, self._obs_dtype)
        if rows > self._rows or block.schema != schema:
            raise ValueError(
                f"block {block.sequence} of {block.source} has {rows} frames of "
                f"{block.schema}, more or others than a place of {self._rows} holds"
            )

    def _sendable(self, array: np.ndarray) -> Tensor:
        """A copy that the device reads by itself."""
        locked = self._stream is not None
        copy = torch.empty(array.shape, dtype=as_torch(array.dtype), pin_memory=locked)
        copy.numpy()[:] = array
        return copy


class Gathered:
    """What was begun on a stream until now, to be waited for; without a stream it is done.

    Called by a reader, lets the reader's own stream wait, not the reader.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._event = None if stream is None else stream.record_event()

    def __call__(self) -> None:
        """Let the present stream wait."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)


def _as_words(frames: Tensor, count: int) -> Tensor:
    """(count, words) view of `count` frames, in the widest words that divide one.

    A GPU copies one word a thread.
    """
    flat = frames.view(count, -1).view(torch.uint8)
    word = next(word for word in _WORDS if flat.shape[1] % word.itemsize == 0)
    return flat.view(word)


def block_source(
    config: TaskConfig, spec: EnvironmentSpec, device: torch.device
) -> BlockSource[Any]:
    """What a task's batches are drawn from: frames on the device, or where replay has them."""
    agent, length = config.agent, config.rollout.block_length
    rule = TransitionRule(agent.frame_stack, agent.n_step, agent.discount, agent.reward_clip)
    if not _is_resident(config, device):
        return MappedBlocks(rule, length)
    places = resident_places(config)
    return ResidentBlocks(rule, length, places, spec.obs_shape, spec.obs_dtype, device)


def batch_memory(config: TaskConfig, device: torch.device) -> Allocate[Any]:
    """How the memory of a task's batches is made."""
    if _is_resident(config, device):
        return on_device(device)
    return page_locked if device.type == "cuda" else np.empty


def _is_resident(config: TaskConfig, device: torch.device) -> bool:
    return device.type == "cuda" and config.learner.resident_share > 0
