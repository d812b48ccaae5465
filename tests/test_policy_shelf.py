"""Policies on the shelf: versions only grow, and what is not whole is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_disk import fill, small_disk

from rl_cluster.fence import Fence, StaleEpoch, advance
from rl_cluster.policy_shelf import PolicyRecord, PolicyShelf, PolicyShelfError


def add(
    shelf: PolicyShelf, version: int, mean: float | None = None, onnx: bytes = b""
) -> PolicyRecord:
    return shelf.add(
        onnx or f"policy {version}".encode(),
        version=version,
        policy_version=10 * version,
        learner_updates=100 * version,
        mean_return=mean,
        episodes=5 if mean is not None else 0,
        reason="new",
        time_s=1.5,
    )  # fmt: skip


def test_what_is_added_is_found_by_a_later_shelf(tmp_path: Path) -> None:
    record = add(PolicyShelf(tmp_path, keep=3), 4, mean=2.0)
    later = PolicyShelf(tmp_path, keep=3)
    assert later.newest() == record and later.load(4) == b"policy 4"


def test_versions_only_grow(tmp_path: Path) -> None:
    shelf = PolicyShelf(tmp_path, keep=3)
    add(shelf, 4)
    for version in (4, 3):
        with pytest.raises(PolicyShelfError, match=f"version {version} is not above 4"):
            add(shelf, version)
    assert [r.version for r in shelf.records()] == [4]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    shelf = PolicyShelf(tmp_path, keep=2)
    for version, mean in ((1, -3.0), (2, 9.0), (3, 1.0), (4, None), (5, 2.0)):
        add(shelf, version, mean)
    assert [r.version for r in shelf.records()] == [2, 4, 5]
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", [b"", b"policx 1"])
def test_a_file_that_is_not_what_was_kept_is_refused(tmp_path: Path, damage: bytes) -> None:
    shelf = PolicyShelf(tmp_path, keep=3)
    add(shelf, 1)
    (tmp_path / "1.onnx").write_bytes(damage)
    with pytest.raises(PolicyShelfError, match="not what was kept"):
        shelf.load(1)


def test_a_torn_record_never_was_and_its_version_is_used_again(tmp_path: Path) -> None:
    shelf = PolicyShelf(tmp_path, keep=3)
    add(shelf, 1)
    text = (tmp_path / "1.json").read_text()
    (tmp_path / "1.json").write_text(text[: len(text) // 2])
    assert shelf.newest() is None
    with pytest.raises(PolicyShelfError, match="there are: none"):
        shelf.load(1)
    add(shelf, 1)
    assert shelf.load(1) == b"policy 1"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path, size_kib=256) as disk:
        shelf = PolicyShelf(disk / "policies", keep=3)
        add(shelf, 1)
        fill(disk / "others", leave_pages=2)
        with pytest.raises(OSError):
            add(shelf, 2, onnx=bytes(100_000))
        assert [r.version for r in shelf.records()] == [1] and shelf.load(1) == b"policy 1"
        assert not [path for path in (disk / "policies").iterdir() if path.name.endswith(".tmp")]
        (disk / "others").unlink()
        add(shelf, 2)
        assert shelf.load(2) == b"policy 2"


def test_a_writer_whose_place_was_taken_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    fence = Fence(path, advance(path, 1.0))
    shelf = PolicyShelf(tmp_path / "policies", keep=3, fence=fence)
    add(shelf, 1)
    advance(path, 1.0)
    with pytest.raises(StaleEpoch):
        add(shelf, 2)
    assert [r.version for r in shelf.records()] == [1]
