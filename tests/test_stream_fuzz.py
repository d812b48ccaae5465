"""A great many broken messages: each is read or refused, none is executed, memory stays flat."""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from chaos.counts import count
from mutated_messages import BOMB_BYTES, Mutations, pickled_arrays, zeros_frame
from stream_messages import documented, experience_of, packed

from rl_cluster.streams.codec import (
    DecodeLimits,
    Experience,
    MalformedMessage,
    decode_experience,
    decode_metadata,
    decode_status,
    decode_update,
)
from rl_cluster.streams.cutting import cut
from rl_cluster.streams.identity import identity_of

MESSAGES = count(1_000_000, 20_000)
LIMITS = DecodeLimits(1 << 20)
SMALL: list[Callable[[bytes], Any]] = [decode_update, decode_metadata, decode_status]


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def read_all(mutations: Mutations, number: int) -> Counter[str]:
    """How many were read and refused; anything but a refusal is raised."""
    seen: Counter[str] = Counter()
    for _ in range(number):
        payload = mutations.next()
        try:
            use(decode_experience(payload, LIMITS), payload)
            seen["read"] += 1
        except MalformedMessage as error:
            seen["refused"] += 1
            assert len(str(error)) < 300
        for decode in SMALL:
            with contextlib.suppress(MalformedMessage):
                decode(payload)
    return seen


def use(experience: Experience, payload: bytes) -> None:
    """What was let through can be learned from."""
    assert 1 <= experience.steps <= LIMITS.max_steps
    message = identity_of(payload, None, experience.metadata)
    for block in cut(
        experience,
        source="rover:?",
        message=message,
        position=1,
        policy_version=experience.metadata.policy_version or 0,
        length=64,
    ):
        block.check_valid()
        assert np.isfinite(block.observations).all()
        assert np.abs(block.actions).max() <= 1 and np.abs(block.rewards).max() <= 1


@pytest.mark.timeout(count(3600, 180))
def test_no_message_does_anything_but_be_read_or_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mutations = Mutations(seed=1, mark=mark)
    seen = read_all(mutations, 2_000)
    before_bytes = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seen += read_all(mutations, MESSAGES - 2_000)
    assert seen.total() == MESSAGES and min(seen["read"], seen["refused"]) > MESSAGES // 50
    assert not mark.exists()
    assert status_bytes("VmHWM") - before_bytes < BOMB_BYTES // 16
    assert status_bytes("VmRSS") - before_bytes < 48 << 20


def test_objects_that_would_leave_a_mark_are_refused_wherever_they_are(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    read = [name for name in documented(experience_of([True])) if name != "metadata"]
    for value in pickled_arrays(mark):
        for name in read:
            with pytest.raises(MalformedMessage):
                decode_experience(packed(**{name: value}), LIMITS)
        with contextlib.suppress(MalformedMessage):
            decode_experience(packed(metadata=value, camera=value), LIMITS)
        for decode in SMALL:
            with pytest.raises(MalformedMessage):
                decode(msgpack.packb(value))
    assert not mark.exists()


def test_the_mark_is_left_by_whoever_unpickles(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickled = [each for each in pickled_arrays(mark) if isinstance(each, bytes)]
    for data in pickled:
        pickle.loads(data)
        mark.rmdir()
    assert len(pickled) == 3


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_bomb_takes_no_memory(says_its_size: bool) -> None:
    frame = zeros_frame(BOMB_BYTES, says_its_size)
    assert len(frame) < BOMB_BYTES // 1000
    payload = packed(bev={"data": frame, "shape": [4, 2, 128, 128], "dtype": "float32"})
    Path("/proc/self/clear_refs").write_text("5")
    before_bytes = status_bytes("VmHWM")
    with pytest.raises(MalformedMessage, match="bev"):
        decode_experience(payload, LIMITS)
    assert status_bytes("VmHWM") - before_bytes < 16 << 20
