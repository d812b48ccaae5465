"""Replay on a device: the same batches, bit for bit, as the gather on the host makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_samples import IMAGE, agent, assert_same, everything
from naive_replay import Cut, Row, build, rules, streams, unhurried

from rl_cluster.agents.captured import on_device
from rl_cluster.config import TaskConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import Learner
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import Batch, BatchRing, MappedBlocks
from rl_cluster.replay.index import Sample
from rl_cluster.replay.transitions import TransitionRule
from rl_cluster.resident import ResidentBlocks, resident_bytes, resident_places

CPU = torch.device("cpu")
RULE = TransitionRule(2, 1, 0.9, None)


def empty(rule: TransitionRule, length: int, places: int, like: Block) -> ResidentBlocks:
    frames = like.observations
    return ResidentBlocks(rule, length, places, frames.shape[1:], frames.dtype, CPU)


def on_host(batch: Batch[torch.Tensor]) -> Batch:
    batch.wait()
    return replace(batch, s_tm1=batch.s_tm1.numpy(), s_t=batch.s_t.numpy())


def assert_equal(found: Batch[torch.Tensor], wanted: Batch) -> None:
    found.check_valid()
    host = vars(on_host(found))
    for name, value in vars(wanted).items():
        if isinstance(value, np.ndarray):
            assert host[name].dtype == value.dtype
            assert host[name].tobytes() == value.tobytes(), name
    assert host["sample"] is wanted.sample
    assert host["sources"] == wanted.sources


def every_start(blocks: dict[int, Block]) -> list[tuple[int, int]]:
    return [(i, row) for i, b in blocks.items() for row in np.flatnonzero(b.starts).tolist()]


def sample_of(places: list[tuple[int, int]]) -> Sample:
    block_ids, rows = np.array(places, np.int64).T
    return Sample(block_ids, rows, np.linspace(1, 0.1, len(places), dtype=np.float32))


@given(st.data(), rules, streams(), st.integers(1, 9), st.integers(1, 4))
@settings(unhurried, max_examples=80)
def test_batches_are_those_of_the_host_whatever_came_and_went(
    data: st.DataObject, rule: TransitionRule, rows: list[Row], length: int, kept: int
) -> None:
    blocks = build(rows, Cut(data.draw(st.integers(1, length)), length), rule)
    if not blocks:
        return
    host = MappedBlocks(rule, length)
    device = empty(rule, length, kept, blocks[0])
    held: dict[int, Block] = {}
    ring, device_ring = BatchRing(2), BatchRing(2, on_device(CPU))
    for block_id, block in enumerate(blocks):
        for source in (host, device):
            source.discard(block_id - kept + 1)
            source.insert(block_id, block)
        held[block_id] = block
        held.pop(block_id - kept, None)
        assert len(device) == len(host) == len(held)
        if starts := every_start(held):
            drawn = data.draw(st.lists(st.sampled_from(starts), min_size=1, max_size=9))
            sample = sample_of(drawn)
            assert_equal(device.gather(sample, device_ring), host.gather(sample, ring))


def frames(count: int, dtype: type = np.uint8) -> list[Block]:
    """Blocks of six rows of images that name their row."""
    rows = [
        Row(np.full(IMAGE[1:], k, dtype), k % 3, np.float32(k), False, False, k == 0, k)
        for k in range(count)
    ]
    return build(rows, Cut(6, 6), RULE)


def resident(blocks: list[Block], places: int = 4) -> ResidentBlocks:
    made = empty(RULE, 6, places, blocks[0])
    for block_id, block in enumerate(blocks):
        made.insert(block_id, block)
    return made


def test_a_learner_learns_the_same_from_either() -> None:
    blocks = frames(20)
    host = MappedBlocks(RULE, 6)
    for block_id, block in enumerate(blocks):
        host.insert(block_id, block)
    sample = sample_of([(0, 1), (2, 5), (1, 0), (0, 1)])
    batches = (
        host.gather(sample, BatchRing(1)),
        resident(blocks).gather(sample, BatchRing(1, on_device(CPU))),
    )
    learned = []
    for batch in batches:
        own = Learner(agent(IMAGE), CPU, 1, lambda version, flat: None, {})
        (report,) = own.step(batch)
        assert report.td_errors is not None
        learned.append(everything(own.agent))
    assert_same(*learned)


def test_a_batch_outlives_its_blocks_until_its_memory_s_turn_comes() -> None:
    blocks = frames(40)
    held, ring = resident(blocks[:2], places=2), BatchRing(2, on_device(CPU))
    first = held.gather(sample_of([(0, 0)]), ring)
    kept = on_host(first).s_t.copy()
    held.discard(2)
    for block_id in (2, 3):
        held.insert(block_id, blocks[block_id])
    second = held.gather(sample_of([(3, 0)]), ring)
    assert np.array_equal(first.s_t, kept)
    assert held.gather(sample_of([(2, 0)]), ring).s_t is first.s_t
    assert int(second.s_tm1[0, -1, 0, 0]) == 18


def test_a_place_in_a_block_that_has_gone_is_an_error() -> None:
    held = resident(frames(20))
    held.discard(1)
    with pytest.raises(KeyError):
        held.gather(sample_of([(0, 0)]), BatchRing(1, on_device(CPU)))


def test_older_blocks_may_come_later_and_go_first() -> None:
    blocks = frames(40)
    held = empty(RULE, 6, 3, blocks[0])
    for block_id in (5, 3, 4):
        held.insert(block_id, blocks[block_id])
    batch = held.gather(sample_of([(3, 0), (4, 0), (5, 0)]), BatchRing(1, on_device(CPU)))
    assert batch.s_tm1[:, -1, 0, 0].tolist() == [18, 24, 30]
    held.discard(5)
    assert len(held) == 1
    held.insert(2, blocks[2])
    batch = held.gather(sample_of([(2, 0), (5, 0)]), BatchRing(1, on_device(CPU)))
    assert batch.s_tm1[:, -1, 0, 0].tolist() == [12, 30]


def test_more_blocks_than_places_are_refused_and_change_nothing() -> None:
    blocks = frames(40)
    held = resident(blocks[:4], places=4)
    with pytest.raises(MemoryError, match="all 4 places"):
        held.insert(4, blocks[4])
    assert len(held) == 4
    held.discard(1)
    held.insert(4, blocks[4])
    assert len(held) == 4


def test_blocks_that_do_not_belong_there_are_refused() -> None:
    blocks = frames(20)
    held = resident(blocks)
    with pytest.raises(ValueError, match=r"uint16\[12,12\]"):
        held.insert(9, frames(20, np.uint16)[0])
    longer = build([Row(np.zeros(IMAGE[1:], np.uint8), 0, np.float32(0), False, False, k == 0, 0)
                    for k in range(30)], Cut(9, 9), RULE)  # fmt: skip
    with pytest.raises(ValueError, match="11 frames"):
        held.insert(9, longer[0])
    assert len(held) == len(blocks)


def task(**replay: object) -> TaskConfig:
    defaults = {"rollout": {"block_length": 64}, "learner": {"batch": 256}, "replay": replay}
    return from_mapping({"tasks": ["Pong"], "defaults": defaults}).tasks["Pong"]


def test_memory_is_that_of_the_replay_and_of_blocks_under_way() -> None:
    config = task(capacity_transitions=500_000)
    spec = EnvironmentSpec((84, 84), np.dtype(np.uint8), 6, 4)
    blocks = -(-500_000 // 64)
    assert blocks < resident_places(config) < 1.02 * blocks
    assert resident_bytes(config, spec) == resident_places(config) * (3 + 64 + 3) * 84 * 84
    few = task(capacity_transitions=10_000, samples_per_insert=0.5)
    assert resident_places(few) - -(-10_000 // 64) > 4 * 8 * 256 / 0.5 / 64
