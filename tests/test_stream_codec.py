"""The rovers' messages: read in every form that the protocol's document allows, and no other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from stream_messages import (
    as_text_keys,
    assert_same_experience,
    documented,
    experience_of,
    nd,
    packed,
)

from rl_cluster.streams.codec import (
    DecodeLimits,
    Experience,
    MalformedMessage,
    Metadata,
    PolicyMetadata,
    PolicyUpdate,
    ServerStatus,
    decode_experience,
    decode_metadata,
    decode_status,
    decode_update,
    encode_experience,
    encode_metadata,
    encode_status,
    encode_update,
)
from rl_cluster.streams.identity import UNKNOWN, identity_of, rover_of, source_of

RECORDED = Path(__file__).parent / "data" / "rover"
LIMITS = DecodeLimits()
SAMPLE = experience_of([False, True, False])


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.msgpack").read_bytes()


def recorded_steps(metadata: Metadata) -> Experience:
    """What `tests/data/rover/make.py` put into both messages, said again."""
    bev = np.zeros((5, 2, 128, 128), np.float32)
    for t in range(5):
        bev[t, 0, 10 * t, 127 - t] = (t + 1) / 8
    bev[:, 1, 30:34, 60:68] = 1
    return Experience(
        bev,
        np.linspace(-3, 12, 30, dtype=np.float32).reshape(5, 6),
        np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2),
        np.array([-0.5, -0.125, 0.25, 0.625, 1], np.float32),
        np.array([False, False, True, False, False]),
        np.array([False, False, False, True, True]),
        metadata,
    )


# Messages of another implementation ----------------------------------------------------------


def test_recorded_experience_of_numpy_arrays_is_read() -> None:
    found = decode_experience(recorded("experience_numpy"), LIMITS)
    assert_same_experience(found, recorded_steps(Metadata("yard 3", 41, 7, 1.75e9)))


def test_recorded_experience_of_plain_lists_is_read() -> None:
    payload = recorded("experience_lists")
    bev = msgpack.unpackb(payload)["bev"]
    assert zstandard.frame_content_size(bev["data"]) == -1  # it does not say
    assert_same_experience(decode_experience(payload, LIMITS), recorded_steps(Metadata()))


def test_recorded_small_messages_are_read() -> None:
    assert decode_update(recorded("update")) == PolicyUpdate(bytes(range(256)), 12)
    assert decode_metadata(recorded("metadata")) == PolicyMetadata(12, 1.75e9)
    assert decode_status(recorded("status")) == ServerStatus("training", 12, 9000, 123456)


@pytest.mark.parametrize("dtype", ["<i8", "<i4", "|u1"])
def test_truncated_steps_may_be_a_packed_array_as_numpy_finds_them(dtype: str) -> None:
    found = np.flatnonzero([False, True, False]).astype(dtype)
    message = decode_experience(packed(metadata={"truncated_steps": nd(found)}), LIMITS)
    assert message.metadata == Metadata(truncated_steps=(1,))
    none = decode_experience(packed(metadata={"truncated_steps": nd(found[:0])}), LIMITS)
    assert none.metadata == Metadata()


# Our messages, read by the document alone ----------------------------------------------------


def test_our_experience_is_what_the_document_says() -> None:
    metadata = Metadata("r1", 3, -1, 12.5)
    fields = msgpack.unpackb(encode_experience(experience_of([False, True], metadata=metadata)))
    wanted = experience_of([False, True])
    assert list(fields) == [
        "bev", "metadata", "proprio", "actions", "rewards", "dones", "is_eval"
    ]  # fmt: skip
    assert (fields["bev"]["shape"], fields["bev"]["dtype"]) == ([2, 2, 128, 128], "float32")
    assert zstandard.ZstdDecompressor().decompress(fields["bev"]["data"]) == wanted.bev.tobytes()
    for name in ("proprio", "actions", "rewards", "dones", "is_eval"):
        array = getattr(wanted, name)
        packed_array = fields[name]
        assert packed_array[b"nd"] is True and not packed_array[b"kind"]
        found = np.frombuffer(packed_array[b"data"], packed_array[b"type"])
        np.testing.assert_array_equal(found.reshape(packed_array[b"shape"]), array)
    assert fields["metadata"] == {
        "rover_id": "r1", "sequence": 3, "policy_version": -1, "sent_at": 12.5
    }  # fmt: skip


def test_our_small_messages_are_what_the_document_says() -> None:
    update = encode_update(PolicyUpdate(b"onnx", 5))
    assert msgpack.unpackb(update) == {"onnx_bytes": b"onnx", "version": 5}
    metadata = encode_metadata(PolicyMetadata(5, 1.5))
    assert msgpack.unpackb(metadata) == {"latest_version": 5, "timestamp": 1.5}
    status = ServerStatus("ready", 5, 10, 20)
    assert msgpack.unpackb(encode_status(status)) == {
        "status": "ready", "model_version": 5, "buffer_size": 10, "total_steps": 20
    }  # fmt: skip
    assert decode_status(encode_status(status)) == status


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(),
        Metadata("r1"),
        Metadata("Rover ü:1", 2**63 - 1, 2**31 - 1, -3.5),
        Metadata(truncated_steps=(1,)),
    ],
)
def test_what_we_encode_we_read_back(metadata: Metadata) -> None:
    experience = experience_of([False, True, False], [True, True, False], metadata)
    assert_same_experience(decode_experience(encode_experience(experience), LIMITS), experience)


# Forms ---------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda a: a.tolist(),
    "keys of bytes": nd,
    "keys of text": lambda a: as_text_keys(nd(a)),
    "without a kind": lambda a: {k: v for k, v in nd(a).items() if k != b"kind"},
    "big-endian": lambda a: nd(a.astype(a.dtype.newbyteorder(">"))),
    "double": lambda a: nd(a.astype(np.float64)),
    "type as bytes": lambda a: nd(a, type=a.dtype.str.encode()),
    "name of the type": lambda a: nd(a, type=a.dtype.name),
    "a list of arrays": lambda a: [nd(np.asarray(row)) for row in a],
    "numpy's numbers": lambda a: [
        [_number(n) for n in row] if a.ndim > 1 else _number(row) for row in a
    ],
}


def _number(value: Any) -> dict[bytes, Any]:
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


OF_LISTS = {"lists", "a list of arrays", "numpy's numbers"}


@pytest.mark.parametrize(
    ("name", "form"),
    [("bev", form) for form in FORMS if form not in OF_LISTS]
    + [(n, form) for n in ("proprio", "actions", "rewards", "dones", "is_eval") for form in FORMS],
)
def test_every_array_is_read_in_every_form(name: str, form: str) -> None:
    payload = packed(**{name: FORMS[form](getattr(SAMPLE, name))})
    assert_same_experience(decode_experience(payload, LIMITS), SAMPLE)


@pytest.mark.parametrize("dtype", ["float16", "float64", "<f4", ">f4", "|u1"])
def test_a_compressed_view_may_have_any_number_type(dtype: str) -> None:
    ones = np.ones((3, 2, 128, 128), dtype)
    data = zstandard.ZstdCompressor().compress(ones.tobytes())
    found = decode_experience(
        packed(bev={"data": data, "shape": ones.shape, "dtype": dtype}), LIMITS
    )
    assert found.bev.dtype == np.float32 and (found.bev == 1).all()


def test_rounding_beyond_the_range_is_clipped() -> None:
    found = decode_experience(packed(rewards=[1.0005, -1.0005, 0]), LIMITS)
    assert found.rewards.tolist() == [1, -1, 0]


def test_fields_of_others_are_passed_over() -> None:
    payload = packed(metadata={"weather": ["rain", {"mm": 3}]}, camera=b"\x00" * 99)
    assert_same_experience(decode_experience(payload, LIMITS), SAMPLE)
    assert_same_experience(decode_experience(packed(metadata=None), LIMITS), SAMPLE)


# Refusals ------------------------------------------------------------------------------------

NAN_VIEW = SAMPLE.bev.copy()
NAN_VIEW[1, 1, 5, 5] = np.nan


def bev(**changed: Any) -> dict[str, Any]:
    return documented(SAMPLE)["bev"] | changed


def zstd(array: np.ndarray) -> bytes:
    return zstandard.ZstdCompressor().compress(array.tobytes())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"bev": None}, "it has no bev"),
        ({"bev": [1]}, "bev is a list, not a map"),
        ({"bev": bev(data=[1, 2])}, "bev is a list, not bytes"),
        ({"bev": bev(data=b"abcdefgh")}, "bev is no whole zstd frame"),
        ({"bev": bev(data=bev()["data"][:-9])}, "bev is no whole zstd frame"),
        ({"bev": bev(data=bev()["data"] + b"1")}, "bev is no whole zstd frame"),
        ({"bev": bev(shape=[4, 2, 128, 128])}, "bev unpacks to 393,216 bytes, not to 524,288"),
        ({"bev": bev(shape=[3, 2, 128, 129])}, "not 1 to 512 views"),
        ({"bev": bev(shape=[0, 2, 128, 128])}, "not 1 to 512 views"),
        ({"bev": bev(shape=[513, 2, 128, 128])}, "not 1 to 512 views"),
        ({"bev": bev(shape=[])}, "not 1 to 512 views"),
        ({"bev": bev(shape=[3.0, 2, 128, 128])}, "bev's shape is 3.0, no whole number"),
        ({"bev": bev(shape=b"3")}, "bev has the shape"),
        ({"bev": bev(dtype="O")}, "bev is of type b'O', which is none of numbers"),
        ({"bev": bev(dtype="f4,f4")}, "none of numbers"),
        ({"bev": bev(data=zstd(NAN_VIEW))}, "bev is not finite, or beyond ±65504"),
        ({"bev": nd(NAN_VIEW)}, "bev is not finite"),
        ({"bev": nd(np.float32(3))}, "not 1 to 512 views"),
        ({"bev": bev(data=zstd(SAMPLE.bev + 65505))}, "bev is not finite, or beyond ±65504"),
        ({"proprio": [[1] * 6] * 2}, r"proprio has the shape \(2, 6\), not \(3, 6\)"),
        ({"proprio": [[1] * 6, [1] * 5, [1] * 6]}, "proprio has rows of different shapes"),
        ({"proprio": [[1] * 6, 3, [1] * 6]}, "proprio is a int, not an array"),
        ({"proprio": [[[1]] * 6] * 3}, "proprio is a list, not an array"),
        ({"proprio": "far"}, "proprio is a bytes, not an array"),
        ({"proprio": [[1e39] * 6] * 3}, "proprio is not finite, or beyond"),
        ({"actions": [[0.5, -1.01]] * 3}, "actions is not finite, or beyond ±1.001"),
        ({"actions": nd(np.zeros((3, 2)), kind=b"O")}, "actions is of kind b'O'"),
        ({"actions": nd(np.zeros((3, 2)), kind="V")}, "actions is of kind b'V'"),
        ({"actions": nd(np.zeros((3, 2)), type="|O")}, "actions is of type b'|O'"),
        ({"actions": nd(np.zeros((3, 2)), shape=[3, 3])}, "actions has 6 numbers"),
        ({"actions": nd(np.zeros((3, 2)), shape=[-3, -2])}, "actions's shape is -3"),
        ({"actions": nd(np.zeros((3, 2)), shape=[1] * 9)}, "actions has the shape"),
        ({"actions": nd(np.zeros((3, 2)), data=b"123")}, "actions has 3 bytes of float64"),
        ({"rewards": [0.1, float("nan"), 0]}, "rewards is not finite"),
        ({"rewards": [0.1, -float("inf"), 0]}, "rewards is not finite"),
        ({"rewards": [0.1, "much", 0]}, "rewards is or holds a bytes, not a number"),
        ({"rewards": [0.1, {b"complex": True, b"data": "1j"}, 0]}, "rewards is of type None"),
        ({"rewards": [0.1, None, 0]}, "rewards is or holds a NoneType"),
        ({"dones": [True, False]}, r"dones has the shape \(2,\), not \(3,\)"),
        ({"dones": [True, False, 0.5]}, "dones are not all true or false"),
        ({"is_eval": [-1, 0, 0]}, "is_eval are not all true or false"),
        ({"is_eval": None}, "it has no is_eval"),
        ({"metadata": [1]}, "metadata is a list, not a map"),
        ({"metadata": {"rover_id": 7}}, "rover_id is 7"),
        ({"metadata": {"rover_id": ""}}, "rover_id is b''"),
        ({"metadata": {"rover_id": "../etc"}}, "letters, digits, spaces"),
        ({"metadata": {"rover_id": "a\nb"}}, "letters, digits, spaces"),
        ({"metadata": {"rover_id": "r" * 65}}, "a bytes of 65"),
        ({"metadata": {"rover_id": b"\xff\xfe"}}, "letters, digits, spaces"),
        ({"metadata": {"sequence": -1}}, "sequence is -1, no whole number in 0 to"),
        ({"metadata": {"sequence": 2**63}}, "sequence is 9223372036854775808"),
        ({"metadata": {"sequence": True}}, "sequence is True"),
        ({"metadata": {"policy_version": 2**31}}, "policy_version is 2147483648"),
        ({"metadata": {"policy_version": -2}}, "policy_version is -2"),
        ({"metadata": {"sent_at": float("nan")}}, "sent_at is nan"),
        ({"metadata": {"sent_at": "today"}}, "sent_at is or holds a bytes"),
        ({"metadata": {"truncated_steps": True}}, "truncated_steps is True, no list"),
        ({"metadata": {"truncated_steps": [3]}}, "truncated_steps is 3, no whole number in 0 to 2"),
        ({"metadata": {"truncated_steps": [0]}}, "truncated_steps has 0, which is not done"),
    ],
)
def test_what_is_no_message_is_refused_with_its_reason(
    changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedMessage, match=reason.replace("|", r"\|")):
        decode_experience(packed(**changed), LIMITS)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no MessagePack"),
        (b"\xc1", "no MessagePack"),
        (msgpack.packb(3), "a int, not a map"),
        (packed()[:-1], "no MessagePack"),
        (packed() + b"\x00", "no MessagePack"),
        (msgpack.packb({3: 4}), "no MessagePack"),
        (b"\x91" * 600 + b"\x00", "a list, not a map"),
        (b"\x91" * 5_000 + b"\x00", "no MessagePack: StackError"),
        (b"\x81\xa1a" * 5_000 + b"\x00", "no MessagePack: StackError"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "no MessagePack"),
        (msgpack.packb({"a": [[[]] * 500] * 500}), "of too many parts"),
        (pickle.dumps({"bev": 1}), "no MessagePack"),
    ],
)
def test_bytes_that_are_no_map_are_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode_experience(payload, LIMITS)


def test_a_message_above_the_limit_is_not_even_looked_at() -> None:
    payload = packed()
    assert decode_experience(payload, DecodeLimits(3 * 131_072)).steps == 3
    with pytest.raises(MalformedMessage, match="not 1 to 2 views"):
        decode_experience(payload, DecodeLimits(3 * 131_072 - 1))
    with pytest.raises(MalformedMessage, match=f"{len(payload)} bytes: 100 are the most"):
        decode_experience(payload, DecodeLimits(100))


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_frame_that_unpacks_to_more_than_it_may_is_refused(says_its_size: bool) -> None:
    zeros = bytes(1 << 24)
    unpacker = zstandard.ZstdCompressor(write_content_size=says_its_size)
    with pytest.raises(MalformedMessage, match="bev"):
        decode_experience(packed(bev=bev(data=unpacker.compress(zeros))), LIMITS)


@pytest.mark.parametrize(
    ("decode", "fields", "reason"),
    [
        (decode_update, {"onnx_bytes": b"x"}, "it has no version"),
        (decode_update, {"onnx_bytes": [1], "version": 3}, "onnx_bytes is a list"),
        (decode_update, {"onnx_bytes": b"x", "version": -1}, "version is -1"),
        (decode_update, {"onnx_bytes": bytes(51 << 20), "version": 1}, "are the most"),
        (decode_metadata, {"latest_version": 2.0, "timestamp": 1}, "latest_version is 2.0"),
        (decode_metadata, {"latest_version": 2, "timestamp": float("inf")}, "timestamp is inf"),
        (decode_status, {"status": "ready"}, "it has no model_version"),
    ],
)
def test_small_messages_are_checked_as_well(
    decode: Callable[[bytes], Any], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode(msgpack.packb(fields))


def test_policies_of_others_may_say_more() -> None:
    fields = {"onnx_bytes": b"x", "version": 3, "layers": [1, 2], "trained_on": {"rovers": 3}}
    assert decode_update(msgpack.packb(fields)) == PolicyUpdate(b"x", 3)


# Identity ------------------------------------------------------------------------------------


def test_a_message_is_known_by_its_name_then_its_number_then_its_bytes() -> None:
    numbered = Metadata("r1", 7)
    assert identity_of(b"x", "abc", numbered) == "id:abc"
    assert identity_of(b"x", None, numbered) == identity_of(b"y", "", numbered) == "rover:r1/7"
    hashed = identity_of(b"x", None, Metadata("r1"))
    assert hashed.startswith("blake2b:") and len(hashed) == 8 + 32
    assert hashed == identity_of(b"x", None, Metadata(sequence=7))
    assert hashed != identity_of(b"y", None, Metadata())


def test_identities_of_different_sorts_never_meet() -> None:
    assert identity_of(b"x", "rover:r1/7", Metadata()) != identity_of(b"x", None, Metadata("r1", 7))
    long_names = [identity_of(b"x", "n" * 999 + end, Metadata()) for end in "ab"]
    assert len(set(long_names)) == 2 and len(long_names[0]) < 50


def test_rovers_without_a_name_share_one_that_nobody_can_take() -> None:
    assert (rover_of(Metadata("r1")), source_of(Metadata("r1"))) == ("r1", "rover:r1")
    assert (rover_of(Metadata()), source_of(Metadata())) == (UNKNOWN, "rover:?")
    with pytest.raises(MalformedMessage):
        decode_experience(packed(metadata={"rover_id": UNKNOWN}), LIMITS)
