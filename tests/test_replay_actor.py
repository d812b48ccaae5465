"""The replay actor without Ray: whom it answers when, and in which order."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_samples import agent

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.cluster import replay_actor
from rl_cluster.cluster.messages import ReplayState, SampleReply, SampleRequest
from rl_cluster.cluster.parcels import Delivery
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.cluster.replay_journal import BlockBack
from rl_cluster.cluster.saves import _replay_state, _replay_tensors
from rl_cluster.config import LearnerConfig, ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.learner import Learner
from rl_cluster.replay.block import BlockInfo
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.rollout import CollectReport

LENGTH, BATCH = 4, 8


def config_of(capacity: int) -> TaskConfig:
    return TaskConfig(
        rollout=RolloutConfig(block_length=LENGTH, blocks_per_collect=1),
        replay=ReplayConfig(
            capacity_transitions=capacity, min_transitions=LENGTH, samples_per_insert=1.0
        ),
        learner=LearnerConfig(batch=BATCH),
    )


def actor(capacity: int = 40) -> ReplayActor:
    return ReplayActor("task", config_of(capacity), seed=0)


def insert(replay: ReplayActor, blocks: int) -> None:
    """As when a rollout's call for blocks comes back."""
    starts, versions = np.ones(LENGTH, np.bool_), np.zeros(LENGTH, np.int32)
    infos = [BlockInfo("env", i, "uint8[2]", starts, versions, 10) for i in range(blocks)]
    refs: list[Any] = [object() for _ in infos]
    replay._take(Delivery(infos, refs, CollectReport((), 0.1)))


def request(known_arrival: int = -1, batches: int = 1) -> SampleRequest:
    return SampleRequest(known_arrival, 0, 0, batches, ())


def test_a_call_waits_for_the_samples_that_the_ratio_owes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_actor, "_LONG_POLL_S", 3600.0)  # only the insert can end the wait

    async def scenario() -> SampleReply:
        replay = actor()
        insert(replay, 1)
        call = asyncio.create_task(replay.sample(request()))
        await asyncio.sleep(0.05)
        assert not call.done()
        insert(replay, 2)
        return await asyncio.wait_for(call, 60)

    reply = asyncio.run(scenario())
    assert len(reply.samples) == 1
    assert [block_id for _, block_id, _ in reply.new_blocks] == [0, 1, 2]


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
    assert [block_id for _, block_id, _ in reply.new_blocks] == [4, 5, 6, 7, 8]
    assert {int(i) for sample in reply.samples for i in sample.block_ids} <= set(range(4, 9))


def come_back(replay: ReplayActor, block_id: int) -> bool:
    """As when the journal brings a block back."""
    starts, versions = np.ones(LENGTH, np.bool_), np.zeros(LENGTH, np.int32)
    ref: Any = object()
    return replay._take_back(
        BlockBack(block_id, BlockInfo("env", 0, "uint8[2]", starts, versions, 10), ref)
    )


def state_of(replay: ReplayActor) -> ReplayState:
    return asyncio.run(replay.state())


def attached(next_block_id: int, capacity: int = 40, **counters: Any) -> ReplayActor:
    """A replay that goes on from a checkpoint."""
    replay = actor(capacity)
    saved = state_of(replay)
    counters = saved.counters | {"next_block_id": next_block_id} | counters
    asyncio.run(replay.attach(replace(saved, counters=counters)))
    return replay


def test_ids_go_on_above_those_that_a_checkpoint_names() -> None:
    """Its priorities are those of other blocks, though a crash took these from the journal."""
    replay = attached(next_block_id=30)
    insert(replay, 1)
    reply = asyncio.run(replay.sample(request()))
    assert [block_id for _, block_id, _ in reply.new_blocks] == [30]


def test_a_checkpoint_from_before_there_was_a_journal_goes_on() -> None:
    replay = actor()
    saved = state_of(replay)
    counters = {name: value for name, value in saved.counters.items() if name != "next_block_id"}
    asyncio.run(replay.attach(replace(saved, counters=counters | {"env_steps": 77})))
    assert asyncio.run(replay.status()).env_steps == 77


def test_every_block_is_named_once_in_the_order_it_came_older_ones_too() -> None:
    async def scenario() -> list[tuple[int, ...]]:
        replay, told, known = attached_to_be(), [], -1
        for event in ("new", "old", "old", "new", "old", "new"):
            if event == "new":
                insert(replay, 1)
            else:
                assert come_back(replay, next(older))
            reply = await replay.sample(request(known, batches=0))
            known = reply.new_blocks[-1][0]
            told.append(tuple(block_id for _, block_id, _ in reply.new_blocks))
        everything = await replay.sample(request(-1, batches=0))  # a replaced learner's first
        told.append(tuple(block_id for _, block_id, _ in everything.new_blocks))
        return told

    def attached_to_be() -> ReplayActor:
        replay = actor()
        replay._next_block_id = 20
        replay._limiter.insert(1_000)
        return replay

    older = iter((19, 18, 16))
    told = asyncio.run(scenario())
    assert told == [(20,), (19,), (18,), (21,), (16,), (22,), (20, 19, 18, 21, 16, 22)]


def test_a_block_that_comes_back_is_no_insert_but_warms_up() -> None:
    replay = attached(next_block_id=20, env_steps=500)
    assert come_back(replay, 19)
    status = asyncio.run(replay.status())
    assert (status.env_steps, status.transitions, status.restored_blocks) == (500, LENGTH, 1)
    assert status.warm
    for block_id in (18, 17, 16):
        come_back(replay, block_id)
    assert asyncio.run(replay.sample(request())).samples == ()  # nothing is owed for them
    insert(replay, 2)
    assert len(asyncio.run(replay.sample(request())).samples) == 1
    assert asyncio.run(replay.status()).env_steps == 500 + 2 * LENGTH


def test_what_lets_go_never_names_a_block_that_still_comes_back() -> None:
    replay = attached(next_block_id=20, capacity=5 * LENGTH)
    insert(replay, 1)
    first = asyncio.run(replay.sample(request(batches=0)))
    assert come_back(replay, 17)
    assert first.oldest_block_id <= 17
    assert not come_back(replay, 15)
    insert(replay, 4)
    later = asyncio.run(replay.sample(request(batches=0)))
    assert later.oldest_block_id == 20
    assert [block_id for _, block_id, _ in later.new_blocks] == [20, 21, 22, 23, 24]


def test_a_checkpoint_while_blocks_come_back_keeps_the_priorities_of_those_to_come(
    tmp_path: Path,
) -> None:
    replay = ReplayActor("task", config_of(40), 0, JournalPlace(tmp_path, "uint8[2]"))
    ids = np.arange(5, 20)
    priorities = np.random.default_rng(1).uniform(0.1, 2, (15, LENGTH)).astype(np.float32)
    counters = state_of(replay).counters | {"next_block_id": 20}
    replay._continue(ReplayState(counters, ids, priorities))
    assert come_back(replay, 19) and come_back(replay, 18)
    saved = state_of(replay)
    assert sorted(saved.block_ids.tolist()) == list(range(10, 20))  # ten places
    for block_id, row in zip(saved.block_ids.tolist(), saved.priorities, strict=True):
        assert row.tobytes() == priorities[block_id - 5].tobytes()


def test_without_a_journal_a_checkpoint_keeps_no_priorities() -> None:
    replay = actor()
    insert(replay, 3)
    state = state_of(replay)
    assert len(state.block_ids) == len(state.priorities) == 0
    assert asyncio.run(replay.flush(1.0))
    assert asyncio.run(replay.status()).journal_state == "off"


def test_a_checkpoint_carries_priorities_to_disk_and_back(tmp_path: Path) -> None:
    priorities = np.random.default_rng(1).random((3, LENGTH)).astype(np.float32)
    state = ReplayState(
        state_of(actor()).counters, np.array([4, 5, 9]), np.ascontiguousarray(priorities)
    )
    state.priorities.flags.writeable = False  # as Ray gives it
    learner = Learner(agent(), torch.device("cpu"), 1, lambda version, flat: None, {})
    CheckpointStore(tmp_path, keep=1).save(
        learner.checkpoint({"replay": state.counters}, _replay_tensors(state))
    )
    loaded = CheckpointStore(tmp_path, keep=1).load_latest()
    assert loaded is not None
    learner.restore(loaded.checkpoint)
    found = _replay_state(loaded.checkpoint)
    assert found is not None and found.counters == state.counters
    np.testing.assert_array_equal(found.block_ids, state.block_ids)
    assert found.priorities.tobytes() == priorities.tobytes()


def test_a_checkpoint_without_priorities_still_loads() -> None:
    learner = Learner(agent(), torch.device("cpu"), 1, lambda version, flat: None, {})
    counters = state_of(actor()).counters
    found = _replay_state(learner.checkpoint({"replay": counters}))
    assert found is not None and found.counters == counters and len(found.block_ids) == 0
    assert _replay_state(learner.checkpoint({"replay": None}, _replay_tensors(None))) is None


def test_the_exploration_is_that_of_all_rollouts_not_of_the_one_that_reported_last() -> None:
    replay = actor()
    assert asyncio.run(replay.status()).epsilon_mean is None
    for epsilon in (0.4, 0.1, 0.4, 0.1, None):  # a reader of streams has none
        replay._take(Delivery([], [], CollectReport((), epsilon)))
    assert asyncio.run(replay.status()).epsilon_mean == pytest.approx(0.25)
