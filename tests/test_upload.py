"""Uploads: what is reported as done is whole at the remote, and nothing else is."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from faulty_remote import FaultyFileSystem
from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from rl_cluster.fence import Fence, advance
from rl_cluster.remote import RemoteCheckpoints, RemoteError, download
from rl_cluster.upload import Backoff, Uploader, UploadReport

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
QUICK = Backoff(first_s=0.001, longest_s=0.004, attempts=6)
ONCE = Backoff(first_s=0.001, attempts=1)


def checkpoint(step: int, note: str = "") -> Checkpoint:
    tensors = {"weight": torch.full((500,), float(step))}
    return Checkpoint(step, tensors, tensors, {"step": step, "note": note})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=100)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[type[FaultyFileSystem]]:
    """The faulty remote, without faults; its URL leads below `tmp_path`."""
    FaultyFileSystem.make_whole()
    FaultyFileSystem.url = f"faulty://rover:hunter2@host{tmp_path}/remote?token=s3cr3t"
    yield FaultyFileSystem
    assert not FaultyFileSystem.overwritten, "a committed checkpoint was written to"
    FaultyFileSystem.make_whole()


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def upload(url: str, *paths: Path, best: int | None = None, keep: int = 9) -> list[UploadReport]:
    """Upload one after another; `best` is the position of the best one."""
    reports: list[UploadReport] = []
    for position, path in enumerate(paths):
        uploader = Uploader(url, "run", "pong", keep, QUICK)
        uploader.offer(path)
        if position == best:
            uploader.offer_best(path)
        assert uploader.close(60.0)
        reports += uploader.take_reports()
    return reports


def downloaded_step(url: str, tmp_path: Path, best: bool = False) -> int:
    """The step that a new machine goes on from."""
    store = CheckpointStore(tmp_path / uuid.uuid4().hex / "checkpoints", keep=1)
    path = download(f"{url}/run/pong", store, best).path
    loaded = store.load_latest()
    assert loaded is not None and loaded.path == path and not loaded.refused
    assert float(loaded.checkpoint.model["weight"][-1]) == loaded.checkpoint.step
    return loaded.checkpoint.step


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_an_uploaded_checkpoint_can_be_resumed_on_another_machine(
    tmp_path: Path, store: CheckpointStore, protocol: str
) -> None:
    url = f"{protocol}://{tmp_path}/remote"
    path = store.save(checkpoint(7, "hello"))
    (report,) = upload(url, path, best=0)
    assert report.error is None and report.attempts == 1 and report.step == 7
    assert report.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    elsewhere = CheckpointStore(tmp_path / "elsewhere", keep=1)
    for best in (False, True):
        copy = download(f"{url}/run/pong", elsewhere, best).path
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
            file.name: file.read_bytes() for file in path.iterdir()
        }
    assert elsewhere.load(copy).state == checkpoint(7, "hello").state


def test_a_checkpoint_that_is_there_already_is_not_written_again(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    path = store.save(checkpoint(7))
    upload(faulty.url, path)
    faulty.log.clear()
    (report,) = upload(faulty.url, path, best=0)
    assert (report.error, report.size_bytes) == (None, 0)
    assert sorted(faulty.log) == ["write best", "write latest"]


def test_the_manifest_is_written_last_and_removed_first(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    upload(faulty.url, store.save(checkpoint(1)), store.save(checkpoint(2)), keep=1)
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    written = [f"write {name}" for name in [*files, "latest"]]
    assert faulty.log[:-1] == [*written, *written, "remove manifest.json"]
    assert faulty.log[-1].startswith("remove 000000000001-")


def test_the_remote_keeps_the_newest_and_the_best(tmp_path: Path, store: CheckpointStore) -> None:
    url = f"file://{tmp_path}/remote"
    paths = [store.save(checkpoint(step)) for step in range(1, 8)]
    assert all(report.error is None for report in upload(url, *paths, best=1, keep=3))
    kept = RemoteCheckpoints(url, "run", "pong").whole()
    assert [int(name.partition("-")[0]) for name in kept] == [2, 5, 6, 7]
    assert downloaded_step(url, tmp_path) == 7
    assert downloaded_step(url, tmp_path, best=True) == 2


def test_an_older_one_can_be_marked_best_later_and_latest_stays(
    tmp_path: Path, store: CheckpointStore
) -> None:
    url = f"file://{tmp_path}/remote"
    first, second = store.save(checkpoint(1)), store.save(checkpoint(2))
    upload(url, second)
    uploader = Uploader(url, "run", "pong", 1, QUICK)
    uploader.offer_best(first)
    assert uploader.close(60.0)
    assert downloaded_step(url, tmp_path) == 2
    assert downloaded_step(url, tmp_path, best=True) == 1
    assert (tmp_path / "remote/run/pong/latest").read_text().startswith("000000000002-")


def test_what_waits_while_one_is_copied_gives_way_to_the_newest_but_not_the_best(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    faulty.open_gate.clear()
    uploader = Uploader(faulty.url, "run", "pong", 9, QUICK)
    paths = [store.save(checkpoint(step)) for step in range(1, 6)]
    uploader.offer(paths[0])
    wait_until(lambda: (Path(faulty._strip_protocol(faulty.url)) / "run").exists())
    uploader.offer_best(paths[1])
    for path in paths[1:]:
        uploader.offer(path)
    faulty.open_gate.set()
    assert uploader.close(60.0)
    reports = uploader.take_reports()
    assert [(report.step, report.error) for report in reports] == [(1, None), (2, None), (5, None)]
    assert uploader.take_reports() == []


@pytest.mark.parametrize("every", [2, 3, 4, 5, 6])
def test_every_nth_write_failing_is_tried_again_until_all_is_whole(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem], every: int
) -> None:
    faulty.fail_every = every
    reports = upload(faulty.url, *(store.save(checkpoint(step)) for step in range(1, 9)), keep=2)
    whole = [report for report in reports if report.error is None]
    assert any(report.attempts > 1 for report in reports)
    if every >= 5:
        assert len(whole) == len(reports), "two attempts in a row write a whole checkpoint"
    faulty.make_whole()
    upload(faulty.url, store.save(checkpoint(9)))
    assert downloaded_step(faulty.url.partition("?")[0], tmp_path) == 9


def test_a_remote_that_is_away_is_an_error_and_the_next_goes_on_when_it_is_back(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    faulty.away = True
    uploader = Uploader(faulty.url, "run", "pong", 9, QUICK)
    uploader.offer(store.save(checkpoint(1)))
    reports: list[UploadReport] = []
    wait_until(lambda: bool(reports.extend(uploader.take_reports()) or reports))
    assert [(report.step, report.attempts, report.size_bytes) for report in reports] == [(1, 6, 0)]
    assert "ConnectionError: cannot reach" in str(reports[0].error)
    faulty.away = False
    uploader.offer(store.save(checkpoint(2)))
    assert uploader.close(60.0)
    (report,) = uploader.take_reports()
    assert (report.step, report.error) == (2, None)
    assert downloaded_step(faulty.url.partition("?")[0], tmp_path) == 2


def test_nothing_secret_is_shown(store: CheckpointStore, faulty: type[FaultyFileSystem]) -> None:
    faulty.away = True
    (report,) = upload(faulty.url, store.save(checkpoint(1)))
    assert report.error is not None and "faulty://host" in report.error
    for secret in ("hunter2", "s3cr3t", "rover"):
        assert secret not in repr(report)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_flipped_bit_in_any_write_is_noticed_and_written_again(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem], number: int
) -> None:
    faulty.corrupt = {number}
    (report,) = upload(faulty.url, store.save(checkpoint(3)))
    assert (report.error, report.attempts) == (None, 2)
    assert downloaded_step(faulty.url.partition("?")[0], tmp_path) == 3


def test_a_remote_that_corrupts_everything_is_never_reported_as_success(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    faulty.corrupt = set(range(1000))
    (report,) = upload(faulty.url, store.save(checkpoint(3)))
    assert "does not give back" in str(report.error) and report.size_bytes == 0
    with pytest.raises(RemoteError, match="holds no whole checkpoint"):
        downloaded_step(faulty.url.partition("?")[0], tmp_path)


@pytest.mark.parametrize("writes", range(1, 6))
def test_an_upload_cut_off_at_any_write_leaves_the_one_before_to_resume_from(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem], writes: int
) -> None:
    url = faulty.url.partition("?")[0]
    upload(faulty.url, store.save(checkpoint(1)))
    path = store.save(checkpoint(2))
    faulty.fail_from = faulty.writes + writes
    uploader = Uploader(faulty.url, "run", "pong", 9, ONCE)
    uploader.offer(path)
    assert uploader.close(60.0)
    assert uploader.take_reports()[0].error is not None
    # Only the pointer is missing where the fifth write, of `latest`, is cut off.
    assert downloaded_step(url, tmp_path) == (2 if writes == 5 else 1)
    faulty.make_whole()
    (report,) = upload(faulty.url, path)
    assert report.error is None
    assert downloaded_step(url, tmp_path) == 2


@pytest.mark.parametrize("file", FILES)
def test_one_damaged_at_the_remote_is_refused_by_name_and_repaired_by_a_new_upload(
    tmp_path: Path, store: CheckpointStore, file: str
) -> None:
    url = f"file://{tmp_path}/remote"
    paths = [store.save(checkpoint(step)) for step in (1, 2)]
    upload(url, *paths)
    newest = RemoteCheckpoints(url, "run", "pong").whole()[-1]
    damaged = tmp_path / "remote/run/pong" / newest / file
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    elsewhere = CheckpointStore(tmp_path / "elsewhere", keep=1)
    found = download(f"{url}/run/pong", elsewhere)
    assert found.path.name == "000000000001"
    assert f"{newest}/{file}" in found.refused[0]
    upload(url, paths[1])
    assert downloaded_step(url, tmp_path) == 2


def test_a_source_that_is_pruned_is_given_up_at_once_and_the_next_goes_on(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    first, second = store.save(checkpoint(1)), store.save(checkpoint(2))
    shutil.rmtree(first)
    gone, done = upload(faulty.url, first, second)
    assert "gone or damaged" in str(gone.error) and (gone.attempts, gone.size_bytes) == (1, 0)
    assert (done.step, done.error) == (2, None)


def test_a_damaged_source_is_not_uploaded(
    tmp_path: Path, store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    path = store.save(checkpoint(1))
    os.truncate(path / "optimizer.safetensors", 100)
    (report,) = upload(faulty.url, path)
    assert "optimizer.safetensors is torn" in str(report.error)
    with pytest.raises(RemoteError):
        downloaded_step(faulty.url.partition("?")[0], tmp_path)


def test_a_later_life_is_ahead_at_the_remote_too_and_one_step_of_both_does_not_mix(
    tmp_path: Path, faulty: type[FaultyFileSystem]
) -> None:
    url = faulty.url.partition("?")[0]
    for life, steps in (("first", (100, 140)), ("second", (120, 140, 130))):
        fence = Fence(tmp_path / "epoch", advance(tmp_path / "epoch", 1.0))
        store = CheckpointStore(tmp_path / life, keep=9, fence=fence)
        for step in steps:
            upload(faulty.url, store.save(checkpoint(step, life)))
            if (life, step) == ("second", 120):
                assert downloaded_step(url, tmp_path) == 120
    names = RemoteCheckpoints(url, "run", "pong").whole()
    order = [(int(name.split("-")[1]), int(name.split("-")[0])) for name in names]
    assert order == [(1, 100), (1, 140), (2, 120), (2, 130), (2, 140)]


def test_what_is_too_old_and_cannot_be_removed_is_said(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    faulty.fail_removals = True
    first, second = upload(faulty.url, store.save(checkpoint(1)), store.save(checkpoint(2)), keep=1)
    assert first.error is None
    assert "uploaded, but what is too old was not removed" in str(second.error)
    assert second.size_bytes > 0


def test_a_best_pointer_that_names_nothing_keeps_everything_and_is_said(
    tmp_path: Path, store: CheckpointStore
) -> None:
    url = f"file://{tmp_path}/remote"
    upload(url, store.save(checkpoint(1)), best=0)
    (tmp_path / "remote/run/pong/best").write_bytes(b"\0\0")
    reports = upload(url, *(store.save(checkpoint(step)) for step in (2, 3)), keep=1)
    assert all("names no checkpoint" in str(report.error) for report in reports)
    assert len(RemoteCheckpoints(url, "run", "pong").whole()) == 3
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        downloaded_step(url, tmp_path, best=True)


def test_closing_before_an_upload_ends_is_an_error_for_all_that_was_offered(
    store: CheckpointStore, faulty: type[FaultyFileSystem]
) -> None:
    faulty.open_gate.clear()
    uploader = Uploader(faulty.url, "run", "pong", 9, QUICK)
    uploader.offer(store.save(checkpoint(1)))
    wait_until(lambda: (Path(faulty._strip_protocol(faulty.url)) / "run").exists())
    uploader.offer(store.save(checkpoint(2)))
    assert not uploader.close(0.05)
    reports = uploader.take_reports()
    assert sorted(report.step for report in reports) == [1, 2]
    assert all("not finished" in str(report.error) for report in reports)
    with pytest.raises(RuntimeError, match="closed"):
        uploader.offer(store.directory / "000000000001")
    faulty.open_gate.set()
    assert uploader.close(60.0)


def test_a_protocol_that_cannot_be_used_is_refused_at_once_and_says_what_to_do() -> None:
    with pytest.raises(RemoteError, match=r"Protocol not known.*s3://BUCKET"):
        Uploader("s4://bucket/x", "run", "pong", 3)
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(RemoteError, match="pip install s3fs") as caught:
            Uploader("s3://key:hunter2@bucket/x", "run", "pong", 3)
        assert "hunter2" not in str(caught.value)


def test_what_is_not_named_as_a_checkpoint_is_refused_at_the_offer(tmp_path: Path) -> None:
    uploader = Uploader(f"file://{tmp_path}/remote", "run", "pong", 3)
    with pytest.raises(ValueError, match="latest is not named as a checkpoint"):
        uploader.offer(tmp_path / "latest")
    assert uploader.close(10.0)
    with pytest.raises(ValueError, match="keep is 0"):
        Uploader(f"file://{tmp_path}/remote", "run", "pong", 0)


@given(failures=st.integers(1, 10_000), seed=st.integers(0, 100))
def test_waits_double_up_to_the_longest_with_jitter_below(failures: int, seed: int) -> None:
    backoff = Backoff(first_s=1.0, longest_s=60.0)
    full_s = min(60, 2 ** (failures - 1))
    delay_s = backoff.delay_s(failures, random.Random(seed).uniform)
    assert full_s / 2 <= delay_s <= full_s
