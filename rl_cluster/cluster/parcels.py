"""Blocks on their way from rollout to replay: as they are within a node, packed between two.

A packed block is one record of the journal's format. Invariant: what arrives is whole and of the
numbers that it claims to be, or refused; and from then on it lies in the replay's own node, owned
by the replay, so the other node may die. Atari's blocks shrink more than a hundred times on the
way, and a record below Ray's 100 KB travels in the reply itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rl_cluster.cluster.actors import Actor, Ref
from rl_cluster.replay.block import Block, BlockInfo
from rl_cluster.replay.journal_format import RecordError, decode, encode
from rl_cluster.rollout import CollectReport

_HERE_S = 30.0
"""For bytes that another node has said are made."""


@dataclass(frozen=True)
class Collected:
    """The first return value of `collect`; the blocks are the others."""

    infos: list[BlockInfo]
    report: CollectReport
    packed: bool = False
    """The blocks leave their node: they are records, not blocks."""
    weights_bytes: int = 0
    """Weights that came from another node since the call before."""


@dataclass(frozen=True)
class Delivery:
    """Blocks that are in this node's object store."""

    infos: list[BlockInfo]
    refs: list[Ref]
    report: CollectReport
    block_bytes: int = 0
    """What crossed the network, packed."""
    unpacked_bytes: int = 0
    """The same blocks, unpacked."""
    weights_bytes: int = 0
    """Weights that crossed it the other way."""
    refused: tuple[str, ...] = ()
    """Why blocks were left out."""


@dataclass
class Network:
    """Bytes between a replay's node and others since the replay began."""

    block_bytes: int = 0
    """Blocks that came in, packed."""
    unpacked_bytes: int = 0
    """The same blocks, unpacked."""
    weights_bytes: int = 0
    """Weights that went out, once for each rollout that took them."""

    def add(self, delivery: Delivery) -> None:
        """Count a delivery."""
        self.block_bytes += delivery.block_bytes
        self.unpacked_bytes += delivery.unpacked_bytes
        self.weights_bytes += delivery.weights_bytes


def pack(blocks: Sequence[Block]) -> list[bytes]:
    """Records of blocks, which get their ids from whoever takes them in."""
    return [encode(0, block) for block in blocks]


async def call_for_blocks(source: Actor, blocks: int, env_steps: int, node_id: str) -> Delivery:
    """Let a rollout or reader collect.

    Args:
      source: whom to call.
      blocks: how many are wanted; a reader may bring fewer.
      env_steps: of the task so far.
      node_id: the node that they are for.

    Raises:
      RayError: it failed, or its node did.
    """
    call: Any = source.collect.options(num_returns=blocks + 1)
    refs: list[Ref] = call.remote(blocks, env_steps, node_id)
    collected: Collected = await refs[0]
    if collected.packed:
        return await asyncio.to_thread(_unpack, collected, refs[1:])
    return Delivery(
        collected.infos, refs[1:], collected.report, weights_bytes=collected.weights_bytes
    )


def _unpack(collected: Collected, refs: Sequence[Ref]) -> Delivery:
    records: list[bytes] = ray.get(list(refs), timeout=_HERE_S)
    infos, kept, refused = [], [], []
    for info, record in zip(collected.infos, records, strict=True):
        try:
            block = decode(record)
        except RecordError as error:
            refused.append(f"block {info.sequence} of {info.source}: {error}")
        else:
            infos.append(info)
            kept.append(ray.put(block))
    return Delivery(
        infos,
        kept,
        collected.report,
        sum(map(len, records)),
        sum(info.nbytes for info in collected.infos),
        collected.weights_bytes,
        tuple(refused),
    )
