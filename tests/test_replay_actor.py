"""The replay actor without Ray: whom it answers when, and in which order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from rl_cluster.cluster.messages import SampleReply, SampleRequest
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.config import LearnerConfig, ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.replay.block import BlockInfo
from rl_cluster.rollout import CollectReport

LENGTH, BATCH = 4, 8


def actor(capacity: int = 40) -> ReplayActor:
    config = TaskConfig(
        rollout=RolloutConfig(block_length=LENGTH, blocks_per_collect=1),
        replay=ReplayConfig(
            capacity_transitions=capacity, min_transitions=LENGTH, samples_per_insert=1.0
        ),
        learner=LearnerConfig(batch=BATCH),
    )
    return ReplayActor("task", config, seed=0)


def insert(replay: ReplayActor, blocks: int) -> None:
    """As when a rollout's call for blocks comes back."""
    starts, versions = np.ones(LENGTH, np.bool_), np.zeros(LENGTH, np.int32)
    infos = [BlockInfo("env", i, "uint8[2]", starts, versions, 10) for i in range(blocks)]
    refs: list[Any] = [object() for _ in infos]
    replay._take(infos, refs, CollectReport((), 0.1))


def request(known_block_id: int = -1, batches: int = 1) -> SampleRequest:
    return SampleRequest(known_block_id, 0, 0, batches, ())


def test_a_call_waits_for_the_samples_that_the_ratio_owes() -> None:
    async def scenario() -> SampleReply:
        replay = actor()
        insert(replay, 1)
        call = asyncio.create_task(replay.sample(request()))
        await asyncio.sleep(0.05)
        assert not call.done()
        insert(replay, 2)
        return await asyncio.wait_for(call, 0.5)

    reply = asyncio.run(scenario())
    assert len(reply.samples) == 1
    assert [block_id for block_id, _ in reply.new_blocks] == [0, 1, 2]


def test_a_call_is_answered_without_samples_when_none_come() -> None:
    """So that a learner hears of new blocks, and can end."""

    async def scenario() -> SampleReply:
        replay = actor()
        insert(replay, 1)
        return await replay.sample(request())

    start_s = time.monotonic()
    reply = asyncio.run(scenario())
    assert time.monotonic() - start_s > 0.5
    assert reply.samples == ()
    assert len(reply.new_blocks) == 1


@pytest.mark.parametrize("late", [0.0, 0.02])
def test_calls_are_answered_in_their_order_even_when_a_later_one_finds_samples_first(
    late: float,
) -> None:
    """A reply that overtook another could name blocks that the learner has let go of already."""

    async def scenario() -> list[int]:
        replay, answered = actor(), []

        async def call(number: int) -> None:
            await replay.sample(request())
            answered.append(number)

        insert(replay, 1)
        calls = [asyncio.create_task(call(0))]
        await asyncio.sleep(late)
        insert(replay, 2)  # wakes the first; the second is begun before it has had its turn
        calls.append(asyncio.create_task(call(1)))
        await asyncio.sleep(0.02)
        insert(replay, 2)
        await asyncio.gather(*calls)
        return answered

    assert asyncio.run(scenario()) == [0, 1]


def test_blocks_that_went_are_not_named_any_more() -> None:
    async def scenario() -> SampleReply:
        replay = actor(capacity=5 * LENGTH)
        insert(replay, 9)
        return await replay.sample(request())

    reply = asyncio.run(scenario())
    assert reply.oldest_block_id == 4
    assert [block_id for block_id, _ in reply.new_blocks] == [4, 5, 6, 7, 8]
    assert {int(i) for sample in reply.samples for i in sample.block_ids} <= set(range(4, 9))
