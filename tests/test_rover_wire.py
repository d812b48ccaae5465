from __future__ import annotations

import asyncio
import pickle

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rover_messages import read

from envs.rover.outbox import Outbox
from envs.rover.pilot import Pilot
from envs.rover.vehicle import SimulatedRover, SyntheticRover
from envs.rover.wire import (
    Message,
    WireError,
    decode_metadata,
    decode_status,
    decode_update,
)
from envs.rover.world import EPISODE_STEPS, RoverWorld

DECODERS = [decode_update, decode_metadata, decode_status]


def test_messages_hold_every_step_with_the_result_of_its_action() -> None:
    steps = EPISODE_STEPS + 150
    rover = SimulatedRover("r1", 5, Pilot(5))
    messages = [read(m.payload(0.0)) for m in rover.run(steps) + rover.rest()]
    assert [len(m.rewards) for m in messages] == [64] * (steps // 64) + [steps % 64]
    world, dones, truncated = RoverWorld(1, [5]), 0, 0
    for message in messages:
        for k in range(len(message.rewards)):
            bev, proprio = world.observe()
            np.testing.assert_array_equal(message.bev[k], bev[0])
            np.testing.assert_array_equal(message.proprio[k], proprio[0])
            result = world.step(message.actions[k][None])
            assert message.rewards[k] == result.rewards[0]
            assert message.dones[k] == result.dones[0]
            time_is_up = k in message.metadata.get("truncated_steps", ())
            assert time_is_up == result.truncated[0]
            np.testing.assert_array_equal(message.actions[k], result.driven[0])
            dones, truncated = dones + int(result.dones[0]), truncated + time_is_up
            world.reset(result.dones)
    assert dones >= 1 and truncated >= 1 and rover.steps == steps


def test_message_is_the_documents_map_with_its_types() -> None:
    message = read(SimulatedRover("r1", 5, Pilot(5)).run(64)[0].payload(12.5))
    assert message.bev.shape == (64, 2, 128, 128) and message.bev.dtype == np.float32
    assert message.bev.min() >= 0 and message.bev.max() <= 1
    assert message.proprio.shape == (64, 6) and message.actions.shape == (64, 2)
    assert np.abs(message.actions).max() <= 1 and np.abs(message.rewards).max() <= 1
    assert message.dones.dtype == bool and message.is_eval.dtype == bool
    assert message.metadata == {
        "rover_id": "r1",
        "sequence": 0,
        "policy_version": -1,
        "sent_at": 12.5,
    }


def test_sequence_grows_and_a_restarted_rover_has_other_message_ids() -> None:
    lives = [SyntheticRover("r1", 1).run(3 * 64) for _ in range(2)]
    assert [m.sequence for m in lives[0]] == [m.sequence for m in lives[1]] == [0, 1, 2]
    assert len({m.message_id for life in lives for m in life}) == 6


def test_a_message_sent_again_differs_in_the_time_alone() -> None:
    message = SyntheticRover("r1", 1).run(64)[0]
    first, second = read(message.payload(1.0)), read(message.payload(2.0))
    np.testing.assert_array_equal(first.proprio, second.proprio)
    assert first.metadata | {"sent_at": 2.0} == second.metadata


def test_sparse_synthetic_message_has_the_size_of_a_sparse_real_one() -> None:
    nbytes = len(SyntheticRover("r1", 1).run(64)[0].payload(0.0))
    assert 0.08e6 < nbytes < 0.16e6


def test_what_the_training_side_sends_is_read() -> None:
    update = decode_update(msgpack.packb({"onnx_bytes": b"abc", "version": 3, "more": [1]}))
    assert (update.onnx_bytes, update.version) == (b"abc", 3)
    assert decode_metadata(msgpack.packb({"latest_version": 4, "timestamp": 1.5})) == 4
    status = {"status": "training", "model_version": 5, "buffer_size": 1, "total_steps": 2}
    assert decode_status(msgpack.packb(status)) == 5


MALFORMED = {
    "empty": b"",
    "not MessagePack": b"\xc1",
    "cut off": msgpack.packb({"version": 1})[:-1],
    "more behind it": msgpack.packb({}) + b"\x00",
    "a list": msgpack.packb([1]),
    "no fields": msgpack.packb({}),
    "a text for a number": msgpack.packb(
        dict.fromkeys(("version", "latest_version", "model_version"), "1")
    ),
    "a truth for a number": msgpack.packb(
        dict.fromkeys(("version", "latest_version", "model_version"), True) | {"onnx_bytes": b""}
    ),
    "nested without end": b"\x91" * 100_000,
    "a length that is a lie": b"\xdf\xff\xff\xff\xff",
    "a pickle": pickle.dumps({"version": 1}),
}


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_messages_are_errors_that_say_so(fault: str, decode: object) -> None:
    with pytest.raises(WireError):
        decode(MALFORMED[fault])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(payload)
        except WireError:
            continue


def message(sequence: int, nbytes: int = 100) -> Message:
    return Message("r", sequence, -1, f"r.{sequence}", 64, bytes(nbytes))


async def fill(outbox: Outbox) -> asyncio.Task[None]:
    await outbox.put(message(0))
    await outbox.put(message(1))
    waiting = asyncio.create_task(outbox.put(message(2)))
    await asyncio.sleep(0)
    assert len(outbox) == 2 and not waiting.done()
    return waiting


def test_outbox_waits_for_room_and_loses_nothing() -> None:
    async def scenario() -> None:
        outbox = Outbox(limit_bytes=250)
        waiting = await fill(outbox)
        outbox.acknowledge(message(0))
        await waiting
        assert [(await outbox.next(after)).sequence for after in (-1, 1)] == [1, 2]
        for sequence in (2, 1):
            outbox.acknowledge(message(sequence))
        await outbox.drained()
        assert outbox.acknowledged == 3

    asyncio.run(scenario())


def test_closed_outbox_takes_the_rest_without_waiting() -> None:
    async def scenario() -> None:
        outbox = Outbox(limit_bytes=250)
        waiting = await fill(outbox)
        outbox.close()
        await waiting
        assert len(outbox) == 3

    asyncio.run(scenario())


def test_message_larger_than_the_outbox_passes_alone() -> None:
    async def scenario() -> None:
        outbox = Outbox(limit_bytes=250)
        await outbox.put(message(0, nbytes=1000))
        assert (await outbox.next(-1)).sequence == 0

    asyncio.run(scenario())
