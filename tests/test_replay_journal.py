"""The journal: what is written comes back bit for bit, or is refused, whatever the disk does."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import (
    Row,
    assert_same_block,
    build,
    cuts,
    numbered_block,
    rules,
    streams,
    unhurried,
)
from small_disk import fill, small_disk

from rl_cluster.fence import Fence, StaleEpoch, advance
from rl_cluster.replay import journal_format
from rl_cluster.replay.journal import Journal, JournalLimits, JournalPlace, JournalSchemaError
from rl_cluster.replay.journal_format import RecordError, decode, encode
from rl_cluster.replay.journal_segments import (
    SEGMENT_IDS,
    RefusedRecord,
    RestoredBlock,
    list_segments,
    newest_first,
    segment_name,
)
from rl_cluster.replay.transitions import TransitionRule

SCHEMA = "uint8[6,5]"
DAMAGED = int(os.environ.get("RL_CLUSTER_DAMAGED", "100"))
RECORD_BYTES = len(encode(0, numbered_block(0)))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def limits(
    per_segment: float = 3.5, max_bytes: int = 1 << 40, reserve_bytes: int = 0
) -> JournalLimits:
    """Segments that are sealed with so many small blocks, rounded up."""
    return JournalLimits(max_bytes, reserve_bytes, int(per_segment * RECORD_BYTES))


def writer(directory: Path, limit: JournalLimits | None = None, **more: Any) -> Journal:
    return Journal(JournalPlace(directory, SCHEMA), limit or limits(), **more)


def write(journal: Journal, count: int) -> list[int]:
    ids = list(range(journal.next_block_id, journal.next_block_id + count))
    for block_id in ids:
        assert journal.append(block_id, numbered_block(block_id))
    return ids


def read(directory: Path) -> tuple[list[int], list[str]]:
    """Ids as they come, and reasons; every block is the one that was written under its id."""
    ids, reasons = [], []
    for found in newest_first(list_segments(directory)):
        if isinstance(found, RefusedRecord):
            reasons.append(found.reason)
        else:
            assert_same_block(found.block, numbered_block(found.block_id))
            ids.append(found.block_id)
    assert ids == sorted(set(ids), reverse=True)
    return ids, reasons


# Records -------------------------------------------------------------------------------------


@given(streams(), cuts, rules)
@unhurried
def test_blocks_come_back_bit_for_bit(rows: list[Row], cut: Any, rule: TransitionRule) -> None:
    for block_id, block in enumerate(build(rows, cut, rule)):
        assert_same_block(decode(encode(block_id, block)), block)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "uint16", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2, 2), (0,)])
def test_observations_of_any_number_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    block = numbered_block(7, obs_shape=shape, dtype=dtype)
    strided = replace(block, rewards=np.repeat(block.rewards, 2)[::2])
    assert_same_block(decode(encode(3, strided)), block)


@given(st.data())
@settings(unhurried, max_examples=300)
def test_a_record_with_any_byte_changed_or_missing_is_refused(data: st.DataObject) -> None:
    record = bytearray(encode(11, numbered_block(11)))
    at = data.draw(st.integers(0, len(record) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "more"]))
    if how == "flip":
        record[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del record[at:]
    elif how == "more":
        record.append(0)
    else:
        end = min(len(record), at + 64)
        if not any(record[at:end]):
            return
        record[at:end] = bytes(end - at)
    with pytest.raises(RecordError):
        decode(bytes(record))


def forged(header: dict[str, Any], arrays: bytes) -> bytes:
    """A whole record that says what it likes."""
    payload = zstandard.ZstdCompressor().compress(arrays)
    return journal_format._record(0, json.dumps(header).encode(), payload)


def honest() -> dict[str, Any]:
    block = numbered_block(1)
    arrays = [
        [n, a.dtype.name, list(a.shape)]
        for n, a in vars(block).items()
        if isinstance(a, np.ndarray)
    ]
    return {"source": "env", "sequence": 1, "context": 1, "core": 4, "arrays": arrays}


def changed(entry: int, value: list[Any]) -> dict[str, Any]:
    header = honest()
    header["arrays"][entry] = value
    return header


@pytest.mark.parametrize(
    "header",
    [
        {},
        honest() | {"core": -1},
        honest() | {"core": 99},
        honest() | {"arrays": honest()["arrays"][1:]},
        honest() | {"arrays": 3},
        changed(0, ["observations", "object", [6, 6, 5]]),
        changed(0, ["observations", "uint8", [1 << 40, 6, 5]]),
        changed(0, ["observations", "uint8", [-6, -6, 5]]),
        changed(0, ["observations", "uint8", [6, 6, 6]]),
        changed(1, ["actions", "uint32", [6]]),
        changed(2, ["rewards", "int32", [6]]),
        changed(2, ["rewards", "float32", [6, 1]]),
        changed(1, ["class", "int32", [6]]),
    ],
)
def test_a_record_that_lies_is_refused_before_memory_is_taken(header: dict[str, Any]) -> None:
    arrays = b"".join(
        a.tobytes() for a in vars(numbered_block(1)).values() if isinstance(a, np.ndarray)
    )
    decode(forged(honest(), arrays))
    with pytest.raises(RecordError, match="no block"):
        decode(forged(header, arrays))


def test_objects_are_never_written() -> None:
    block = numbered_block(1)
    with pytest.raises(ValueError, match="object is none of"):
        encode(0, replace(block, observations=block.observations.astype(object)))


@pytest.mark.parametrize("actions", [np.int64, np.float64, np.float16])
def test_actions_of_another_type_are_not_written(actions: type) -> None:
    block = numbered_block(1)
    with pytest.raises(ValueError, match="not int32 or float32"):
        encode(0, replace(block, actions=block.actions.astype(actions)))


@pytest.mark.parametrize("shape", [(), (2,), (1,), (3, 2), (0,)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_actions_of_any_shape_come_back(dtype: type, shape: tuple[int, ...]) -> None:
    actions = np.random.default_rng(3).normal(scale=9, size=(6, *shape)).astype(dtype)
    block = replace(numbered_block(7), actions=actions, message="r1/7#0")
    assert_same_block(decode(encode(3, block)), block)


def test_a_record_of_old_has_no_message_and_is_still_read() -> None:
    block = numbered_block(1)
    arrays = b"".join(a.tobytes() for a in vars(block).values() if isinstance(a, np.ndarray))
    record = forged(honest() | {"source": block.source}, arrays)
    assert b"message" not in record
    assert_same_block(decode(record), block)


# Messages ------------------------------------------------------------------------------------


def write_messages(journal: Journal, *messages: str) -> None:
    for message in messages:
        block_id = journal.next_block_id
        assert journal.append(block_id, replace(numbered_block(block_id), message=message))


def test_messages_of_all_segments_and_writers_are_known_at_the_start(tmp_path: Path) -> None:
    first = writer(tmp_path)
    assert first.messages() == set()
    write_messages(first, *(f"r1/{k}#0" for k in range(9)), "", "ü/1#0")
    first.flush()  # and then it dies
    second = writer(tmp_path)
    write_messages(second, "r2/0#0")
    assert second.messages() == {"ü/1#0", *(f"r1/{k}#0" for k in range(9))}
    assert writer(tmp_path).messages() == second.messages() | {"r2/0#0"}


def test_messages_are_those_of_the_blocks_that_come_back(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    write_messages(journal, *(f"r1/{k}#0" for k in range(14)))
    journal.discard(5)
    newest = list_segments(tmp_path)[-1].path
    os.truncate(newest, newest.stat().st_size - 1)
    later = writer(tmp_path)
    restored = {each.block.message for each in later.found() if isinstance(each, RestoredBlock)}
    assert later.messages() == restored == {f"r1/{k}#0" for k in range(4, 13)}


def test_messages_are_read_without_payloads(tmp_path: Path) -> None:
    """A damaged payload hides no message; a damaged header hides its own only."""
    journal = writer(tmp_path, limits(per_segment=1e6))
    write_messages(journal, "a#0", "b#0", "c#0")
    path = list_segments(tmp_path)[-1].path
    data = bytearray(path.read_bytes())
    data[len(data) - 100] ^= 255
    data[data.index(b'"message": "b#0"') + 1] = 0
    path.write_bytes(data)
    assert writer(tmp_path).messages() == {"a#0", "c#0"}
    assert [type(each) for each in newest_first(list_segments(tmp_path))] == [
        RefusedRecord, RefusedRecord, RestoredBlock
    ]  # fmt: skip


# Segments ------------------------------------------------------------------------------------


def test_blocks_come_back_newest_first_over_all_segments_and_writers(tmp_path: Path) -> None:
    first = writer(tmp_path)
    write(first, 10)
    first.flush()  # and then it dies
    second = writer(tmp_path)
    assert second.next_block_id == 10
    write(second, 7)
    second.close()
    assert read(tmp_path) == (list(range(16, -1, -1)), [])
    assert writer(tmp_path).next_block_id == 17


def test_names_alone_say_the_order_and_what_is_sealed(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    write(journal, 10)
    segments = list_segments(tmp_path)
    assert [(each.first_id, each.sealed) for each in segments] == [
        (0, True), (4, True), (8, False)
    ]  # fmt: skip
    journal.close()
    assert all(each.sealed for each in list_segments(tmp_path))


def test_a_segment_spans_a_bounded_number_of_ids_over_gaps_too(tmp_path: Path) -> None:
    journal = writer(tmp_path, limits(per_segment=1e6))
    write(journal, SEGMENT_IDS + 3)
    journal.append(5_000, numbered_block(5_000))
    journal.close()
    assert [each.first_id for each in list_segments(tmp_path)] == [0, SEGMENT_IDS, 5_000]
    assert read(tmp_path) == ([5_000, *range(SEGMENT_IDS + 2, -1, -1)], [])


def test_ids_only_grow(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    write(journal, 3)
    with pytest.raises(ValueError, match="block id 2: the journal is at 3"):
        journal.append(2, numbered_block(2))


def test_a_torn_end_is_passed_over_and_its_ids_are_not_used_again(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    write(journal, 6)
    newest = list_segments(tmp_path)[-1]
    os.truncate(newest.path, newest.path.stat().st_size - 1)
    assert read(tmp_path) == ([4, 3, 2, 1, 0], [])
    later = writer(tmp_path)
    assert later.next_block_id == newest.first_id + SEGMENT_IDS
    write(later, 2)
    assert len(read(tmp_path)[0]) == 7


def test_nothing_is_written_to_a_segment_that_another_writer_left(tmp_path: Path) -> None:
    write(writer(tmp_path), 6)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    later = writer(tmp_path)
    write(later, 6)
    later.close()
    assert {path: path.read_bytes() for path in before} == before


def test_segments_go_when_all_their_blocks_have(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    write(journal, 14)
    kept = []
    for below in (3, 4, 7, 8, 11, 100):
        journal.discard(below)
        kept.append([each.first_id for each in list_segments(tmp_path)])
    assert kept == [[0, 4, 8, 12], [4, 8, 12], [4, 8, 12], [8, 12], [8, 12], [12]]
    assert journal.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert journal.blocks == 2


def test_the_disk_budget_takes_the_oldest_and_says_so_once(tmp_path: Path) -> None:
    budget = 40 * RECORD_BYTES
    journal = writer(tmp_path, limits(3.5, budget))
    for block_id in range(150):
        assert journal.append(block_id, numbered_block(block_id))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= budget
    ids, reasons = read(tmp_path)
    assert ids[0] == 149 and len(ids) > 30 and not reasons
    assert [each.kind for each in journal.take_notices()] == ["journal_trimmed"]


def test_another_schema_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write(writer(tmp_path), 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(JournalSchemaError, match=r"uint8\[6,5\].*float32\[3\]"):
        Journal(JournalPlace(tmp_path, "float32[3]"), limits())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_one_block_is_in_memory_while_reading(tmp_path: Path) -> None:
    """Of blocks of 4 MB that do not compress, 30 in one segment."""
    shape, schema = (1024, 682), "uint8[1024,682]"
    journal = Journal(JournalPlace(tmp_path, schema), JournalLimits(1 << 40, 0, 1 << 30))
    block = numbered_block(0, obs_shape=shape)
    for block_id in range(30):
        journal.append(block_id, block)
    decode(encode(0, block))

    def read_all() -> None:
        assert sum(1 for _ in newest_first(list_segments(tmp_path))) == 30

    assert memory_growth_of(read_all) < 24_000_000


def memory_growth_of(work: Callable[[], None]) -> int:
    """Bytes by which the peak of a child grows while it works, beyond what it began with."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            before = _rss_bytes()
            _reset_peak()
            work()
            os.write(writing, str(_peak_bytes() - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the child failed"
    return int(text)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _rss_bytes() -> int:
    return 1024 * _status_kb("VmRSS")


def _peak_bytes() -> int:
    return 1024 * _status_kb("VmHWM")


def test_writing_takes_the_memory_of_one_block_however_many_there_are(tmp_path: Path) -> None:
    block = numbered_block(0, obs_shape=(1024, 682))  # 4 MB that do not compress

    def write_all() -> None:
        place = JournalPlace(tmp_path, "uint8[1024,682]")
        journal = Journal(place, JournalLimits(100_000_000, 0))
        for block_id in range(100):
            assert journal.append(block_id, block)

    assert memory_growth_of(write_all) < 24_000_000


# Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncate", "flip", "zero"])
def test_damaged_files_give_right_blocks_and_reasons(tmp_path: Path, how: str) -> None:
    """Never a wrong block (`read` compares), and all that the damage did not touch."""
    rng = np.random.default_rng(["truncate", "flip", "zero"].index(how))
    journal = writer(tmp_path / "whole")
    write(journal, 12)
    journal.close()
    for round_ in range(-(-DAMAGED // 3)):
        directory = tmp_path / f"{round_}"
        directory.mkdir()
        for segment in list_segments(tmp_path / "whole"):
            (directory / segment.path.name).write_bytes(segment.path.read_bytes())
        victim = list_segments(directory)[round_ % 3]
        lost = damage(victim.path, how, rng)
        ids, reasons = read(directory)
        assert reasons and all(str(victim.path) in reason for reason in reasons)
        assert set(range(12)) - set(ids) <= set(range(victim.first_id, victim.first_id + 4))
        assert 12 - len(ids) <= lost
        later = writer(directory)
        assert later.next_block_id >= 12
        write(later, 1)


def damage(path: Path, how: str, rng: np.random.Generator) -> int:
    """Spoil a file; return how many records that touches at most."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    if how == "truncate":
        path.write_bytes(data[:at])
        return 4
    if how == "flip":
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        return 1
    end = min(len(data), at + RECORD_BYTES // 2)
    data[at:end] = bytes(end - at)
    path.write_bytes(data)
    return 2


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([journal_format.MAGIC, b"RLB", encode(3, numbered_block(3))]),
            st.just(journal_format.end_mark(9)),
        ),
        max_size=8,
    ),
    st.booleans(),
)
@settings(unhurried, max_examples=200)
def test_whatever_lies_in_a_file_only_whole_blocks_come_out(
    parts: list[bytes], sealed: bool
) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / segment_name(0, "0" * 8, sealed)).write_bytes(b"".join(parts))
        ids, reasons = read(directory)
        assert ids == ([3] if encode(3, numbered_block(3)) in parts else [])
        assert reasons or not sealed or journal_format.end_mark(9) in parts
        assert writer(directory).next_block_id > 0


def test_a_damaged_length_costs_its_own_record_only(tmp_path: Path) -> None:
    write(writer(tmp_path, limits(100)), 5)
    path = list_segments(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    size = len(encode(0, numbered_block(0)))
    data[size + 20] ^= 0x01  # within the second record's lengths
    path.write_bytes(data)
    ids, reasons = read(tmp_path)
    assert ids == [4, 3, 2, 0]
    assert len(reasons) == 1 and f"bytes {size} to" in reasons[0]


def test_records_that_do_not_belong_into_a_segment_are_refused(tmp_path: Path) -> None:
    """As when a writer that was thought dead went on."""
    stale = writer(tmp_path, limits(100))
    write(stale, 3)
    write(writer(tmp_path, limits(100)), 2)
    stale.append(3, numbered_block(99))
    ids, reasons = read(tmp_path)
    assert ids == [4, 3, 2, 1, 0]
    assert len(reasons) == 1 and "block 3 does not belong" in reasons[0]


def test_a_file_whose_sum_is_right_and_whose_block_is_not_is_refused(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    bad = numbered_block(1)
    journal.append(0, replace(bad, rewards=np.full_like(bad.rewards, np.nan)))
    journal.append(1, bad)
    ids, reasons = read(tmp_path)
    assert ids == [1] and "rewards are not finite" in reasons[0]


# Crashes -------------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "rename", "unlink", "ftruncate", "close")


class Spoiler:
    """Stands before the system calls of this process and spoils the one that is due."""

    def __init__(self, due: int, spoil: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]):
        self.due, self.calls, self._spoil = due, 0, spoil
        self.log: list[tuple[str, Any]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            patch.setattr(os, name, self._instead_of(name, getattr(os, name)))

    def _instead_of(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            self.log.append((name, arguments[0]))
            if self.calls == self.due:
                return self._spoil(name, real, arguments)
            return real(*arguments, **more)

        return call


def life(directory: Path, said: Callable[[int], None]) -> None:
    """What a writer does: appends over some seals, flushes, discards, closes."""
    journal = writer(directory)
    for block_id in range(journal.next_block_id, journal.next_block_id + 9):
        assert journal.append(block_id, numbered_block(block_id))
        said(block_id)
        if block_id % 2:
            journal.flush()
        journal.discard(block_id - 8)
    journal.close()


def die_before(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os._exit(7)


def die_after(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if name == "write":
        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
    else:
        real(*arguments)
    os._exit(7)


@pytest.mark.parametrize("how", [die_before, die_after])
def test_a_crash_at_every_point_loses_no_block_that_was_written(
    tmp_path: Path, how: Callable[..., None]
) -> None:
    points = 0
    while True:
        points += 1
        directory = tmp_path / str(points)
        life_before = writer(directory)
        write(life_before, 5)
        said, code = killed_life(directory, points, how)
        ids, reasons = read(directory)
        assert not reasons
        newest = max(said, default=4)
        assert set(range(max(0, newest - 4), newest + 1)) <= set(ids)
        assert max(ids) in (newest, newest + 1)
        later = writer(directory)
        assert later.next_block_id > newest
        write(later, 2)
        assert read(directory)[0][:2] == [later.next_block_id - 1, later.next_block_id - 2]
        if code == 0:
            break
    assert points > 40


def killed_life(directory: Path, due: int, how: Callable[..., None]) -> tuple[list[int], int]:
    """Ids that a child had written before it died, and its exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            real_write = os.write
            Spoiler(due, how).install(pytest.MonkeyPatch())
            life(directory, lambda block_id: real_write(writing, bytes([block_id])) and None)
            os._exit(0)
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = list(answer.read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 7)
    return said, code


def test_a_segment_is_on_disk_before_it_is_called_sealed_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiler = Spoiler(0, die_before)
    with monkeypatch.context() as patch:
        spoiler.install(patch)
        life(tmp_path, lambda block_id: None)
    names = [name for name, _ in spoiler.log]
    renames = [i for i, name in enumerate(names) if name == "rename"]
    assert len(renames) == 3
    for i in renames:
        last_write = max(j for j in range(i) if names[j] == "write")
        assert names[last_write + 1] == "fsync" and "truncate" not in names[last_write:i]
        assert names[i + 1 : i + 4] == ["close", "open", "fsync"]  # the directory's


# A disk that refuses -------------------------------------------------------------------------


def refuse(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if name == "write":
        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
    if name == "close":
        real(*arguments)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_error_at_every_point_pauses_the_journal_and_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, due = 0, 0
    while True:
        due += 1
        directory, clock = tmp_path / str(due), Clock()
        journal = writer(directory, clock=clock)
        spoiler, written = Spoiler(due, refuse), []
        with monkeypatch.context() as patch:
            spoiler.install(patch)
            for block_id in range(14):
                clock.now_s += 1.0
                if journal.append(block_id, numbered_block(block_id)):
                    written.append(block_id)
                if block_id % 3 == 0:
                    journal.flush()
                journal.discard(block_id - 8)
            journal.close()
        ids, reasons = read(directory)
        assert not reasons
        assert ids == [i for i in reversed(written) if i >= min(ids)]
        assert min(ids) <= 6
        kinds = [each.kind for each in journal.take_notices()]
        assert kinds in ([], ["journal_paused"], ["journal_paused", "journal_resumed"])
        assert journal.lacking == 14 - len(written)
        paused += bool(kinds)
        if spoiler.calls < due:
            break
    assert paused > 20


def test_a_full_disk_pauses_until_there_is_room_and_what_is_there_stays(tmp_path: Path) -> None:
    block = numbered_block(0, obs_shape=(64, 64))
    place = JournalPlace(tmp_path / "disk" / "replay", "uint8[64,64]")
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 1024) as disk:
        clock = Clock()
        journal = Journal(place, JournalLimits(1 << 40, 0, 200_000), clock)
        written = [i for i in range(60) if journal.append(i, block)]
        assert 10 < len(written) < 60
        assert journal.paused and journal.lacking == 60 - len(written)
        assert found_ids(place.directory) == (written[::-1], [])
        clock.now_s += 60
        assert not journal.append(60, block)  # time alone makes no room
        journal.discard(written[-1])
        clock.now_s += 60
        assert journal.append(61, block) and not journal.paused
        journal.close()
        ids, reasons = found_ids(place.directory)
        assert ids[0] == 61 and not reasons
        notices = journal.take_notices()
        assert [each.kind for each in notices] == ["journal_paused", "journal_resumed"]
        assert "bytes are free" in notices[0].cause
        assert f"lacks {61 - len(written)} blocks" in notices[1].action
        assert disk.exists()


def test_a_write_that_the_kernel_cuts_short_leaves_nothing_torn(tmp_path: Path) -> None:
    journal = writer(tmp_path, limits(1e6))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(5.5 * RECORD_BYTES), hard))
    try:
        written = [i for i in range(9) if journal.append(i, numbered_block(i))]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert written == [0, 1, 2, 3, 4] and journal.paused
    assert read(tmp_path) == ([4, 3, 2, 1, 0], [])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == journal.nbytes


def found_ids(directory: Path) -> tuple[list[int], list[str]]:
    found = list(newest_first(list_segments(directory)))
    ids = [each.block_id for each in found if isinstance(each, RestoredBlock)]
    return ids, [each.reason for each in found if isinstance(each, RefusedRecord)]


def test_the_reserve_is_left_to_others(tmp_path: Path) -> None:
    block = numbered_block(0, obs_shape=(64, 64))
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 2048) as disk:
        place = JournalPlace(disk / "replay", "uint8[64,64]")
        journal = Journal(place, JournalLimits(1 << 40, 1_000_000, 100_000))
        for block_id in range(100):
            journal.append(block_id, block)
        room = os.statvfs(disk)
        assert room.f_bavail * room.f_frsize >= 1_000_000 - 100_000
        assert journal.paused and "1,000,000 are left to others" in journal.take_notices()[0].cause


def test_a_disk_without_room_for_one_record_keeps_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 256) as disk:
        fill(disk / "others", leave_pages=1)
        place = JournalPlace(disk, "uint8[64,64]")
        journal = Journal(place, JournalLimits(1 << 40, 0))
        assert not journal.append(0, numbered_block(0, obs_shape=(64, 64)))
        assert list_segments(disk) == [] and journal.nbytes == 0


# Fences --------------------------------------------------------------------------------------


class Taken(RuntimeError):
    """Another writer has taken over."""


class Gate:
    """A fence whose epoch ends when it is told."""

    def __init__(self) -> None:
        self.stale, self.held = False, 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        if self.stale:
            raise Taken
        self.held += 1
        yield


def test_a_writer_whose_epoch_is_over_changes_nothing(tmp_path: Path) -> None:
    gate = Gate()
    journal = Journal(JournalPlace(tmp_path, SCHEMA, gate), limits())
    write(journal, 10)
    assert gate.held >= 10
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    gate.stale = True
    attempts: list[Callable[[], object]] = [
        lambda: journal.append(10, numbered_block(10)),
        lambda: journal.discard(8),
        journal.close,
    ]
    for attempt in attempts:
        with pytest.raises(Taken):
            attempt()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_life_ends_the_old_one_s_writing(tmp_path: Path) -> None:
    """With the fence that runs carry."""
    epochs = tmp_path / "epoch"
    first = Journal(
        JournalPlace(tmp_path / "replay", SCHEMA, Fence(epochs, advance(epochs, 1.0))), limits()
    )
    write(first, 6)
    second = Journal(
        JournalPlace(tmp_path / "replay", SCHEMA, Fence(epochs, advance(epochs, 1.0))), limits()
    )
    with pytest.raises(StaleEpoch):
        write(first, 1)
    assert write(second, 2) == [6, 7]
    assert read(tmp_path / "replay") == ([7, 6, 5, 4, 3, 2, 1, 0], [])
