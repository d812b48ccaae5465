"""Blocks from another node: whole when they arrive, counted as they travelled, refused if torn."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from naive_replay import assert_same_block, numbered_block

from rl_cluster.cluster.actors import spawn
from rl_cluster.cluster.parcels import Collected, Delivery, Network, call_for_blocks, pack
from rl_cluster.rollout import CollectReport

HERE, ELSEWHERE = "here", "elsewhere"
REPORT = CollectReport((), 0.5)


def sent_block(number: int) -> Any:
    """One with large frames of few shades, as a game's are."""
    block = numbered_block(number, obs_shape=(84, 84))
    return dataclasses.replace(block, observations=np.ascontiguousarray(block.observations // 64))


class Source:
    """Collects what its number says; packs it for other nodes, and may damage one."""

    def collect(self, blocks: int, damaged: int, for_node: str) -> tuple[Any, ...]:
        """As a rollout does, `damaged` being the number of one, in place of the steps so far."""
        made = [sent_block(number) for number in range(blocks)]
        leaves = for_node != HERE
        values: list[Any] = pack(made) if leaves else made
        if damaged >= 0:
            torn = bytearray(values[damaged])
            torn[len(torn) // 2] ^= 1
            values[damaged] = bytes(torn)
        infos = [block.info() for block in made]
        return Collected(infos, REPORT, leaves, weights_bytes=7 if leaves else 0), *values


@pytest.fixture(scope="module")
def source() -> Iterator[Any]:
    """On a Ray of its own."""
    paths = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield spawn(Source, "source")
    ray.shutdown()


def deliver(source: Any, blocks: int, node: str, damaged: int = -1) -> Delivery:
    return asyncio.run(call_for_blocks(source, blocks, damaged, node))


def test_what_comes_from_another_node_is_whole_and_counted_packed_and_unpacked(
    source: Any,
) -> None:
    delivery = deliver(source, 3, ELSEWHERE)
    made = [sent_block(number) for number in range(3)]
    for block, ref in zip(made, delivery.refs, strict=True):
        assert_same_block(ray.get(ref), block)
    assert [info.sequence for info in delivery.infos] == [0, 1, 2]
    assert delivery.unpacked_bytes == sum(block.nbytes for block in made)
    assert delivery.block_bytes == sum(map(len, pack(made))) < delivery.unpacked_bytes / 2
    assert (delivery.weights_bytes, delivery.report, delivery.refused) == (7, REPORT, ())


def test_what_stays_on_its_node_crosses_nothing(source: Any) -> None:
    delivery = deliver(source, 2, HERE)
    assert_same_block(ray.get(delivery.refs[1]), sent_block(1))
    assert (delivery.block_bytes, delivery.unpacked_bytes, delivery.weights_bytes) == (0, 0, 0)


def test_a_record_that_was_damaged_on_its_way_is_left_out_and_named_and_the_others_stay(
    source: Any,
) -> None:
    delivery = deliver(source, 3, ELSEWHERE, damaged=1)
    assert [info.sequence for info in delivery.infos] == [0, 2]
    assert [ray.get(ref).sequence for ref in delivery.refs] == [0, 2]
    (said,) = delivery.refused
    assert said.startswith(f"block 1 of {sent_block(1).source}: ")


def test_a_network_s_counters_are_the_sums_of_its_deliveries(source: Any) -> None:
    network = Network()
    deliveries = [deliver(source, n, ELSEWHERE) for n in (1, 2)]
    for delivery in deliveries:
        network.add(delivery)
    assert network.block_bytes == sum(each.block_bytes for each in deliveries)
    assert network.unpacked_bytes == sum(each.unpacked_bytes for each in deliveries)
    assert network.weights_bytes == 14
