"""Checkpoints: what is saved comes back, and what was damaged is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import fill, small_disk

from rl_cluster.checkpoint import Checkpoint, CheckpointError, CheckpointStore, SchemaError
from rl_cluster.fence import Fence, StaleEpoch, advance

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
SCHEMA = {"observation": {"shape": [84, 84], "dtype": "uint8"}, "actions": 6}


def checkpoint(step: int, size: int = 3000) -> Checkpoint:
    """A checkpoint whose every part tells its step."""
    return Checkpoint(
        step=step,
        model={"weight": torch.full((size,), float(step))},
        optimizer={"exp_avg": torch.full((size,), float(step))},
        state={"env_steps": step, "note": "x" * 5000},
        schema=SCHEMA,
    )


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = len(content) // 8192 * 4096
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_bit_for_bit_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": torch.randn(7, 5).mul(100).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "transposed": torch.randn(4, 6).to(dtype).t(),
    }
    store = CheckpointStore(tmp_path, keep=2)
    store.save(Checkpoint(1, tensors, tensors, {}))
    loaded = store.load_latest()
    assert loaded is not None
    for part in (loaded.checkpoint.model, loaded.checkpoint.optimizer):
        assert part.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert part[name].dtype == dtype
            assert torch.equal(part[name], tensor)


def test_random_states_continue_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    generator = np.random.default_rng(3)
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(
        Checkpoint(
            step=1,
            model={},
            optimizer={"torch_rng": torch.get_rng_state()},
            state={"numpy_rng": generator.bit_generator.state},
        )
    )
    wanted = torch.rand(4), generator.random(4)
    loaded = store.load(path)
    torch.set_rng_state(loaded.optimizer["torch_rng"])
    generator.bit_generator.state = loaded.state["numpy_rng"]
    assert torch.equal(torch.rand(4), wanted[0])
    assert np.array_equal(generator.random(4), wanted[1])


def test_views_of_one_flat_vector_can_be_saved(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    tensors = {"a": flat[:4], "b": flat[4:].view(2, 4), "all": flat}
    path = CheckpointStore(tmp_path, keep=1).save(Checkpoint(1, tensors, {}, {}))
    loaded = CheckpointStore.load(path).model
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, float("nan"), float("-inf"), {1, 2}, object()])
def test_state_that_json_would_change_is_refused_at_save(tmp_path: Path, value: object) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(1))
    with pytest.raises(CheckpointError, match="JSON"):
        store.save(Checkpoint(2, {}, {}, {"counters": value}))
    assert names(tmp_path) == ["000000000001", "latest"]


def test_an_empty_directory_has_no_latest_and_no_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "not yet there", keep=1)
    assert store.load_latest() is None
    assert store.load_best() is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage", [truncate, truncate_to_nothing, flip_a_bit, zero_a_page, lengthen, os.unlink]
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    newest = store.save(checkpoint(3))
    damage(newest / file)
    with pytest.raises(CheckpointError, match="000000000003/" + file):
        store.load(newest)
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.checkpoint.step == 2
    assert loaded.path == tmp_path / "000000000002"
    assert [f"000000000003/{file}" in str(error) for error in loaded.refused] == [True]


@settings(max_examples=200)
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = CheckpointStore(directory, keep=1).save(checkpoint(1, size=20))
        file = path / data.draw(st.sampled_from(FILES))
        content = bytearray(file.read_bytes())
        position = data.draw(st.integers(0, 8 * len(content) - 1))
        content[position // 8] ^= 1 << position % 8
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            CheckpointStore.load(path)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(checkpoint(1, size=2))
    content = (path / "manifest.json").read_bytes()
    for position in range(8 * len(content)):
        altered = bytearray(content)
        altered[position // 8] ^= 1 << position % 8
        (path / "manifest.json").write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            CheckpointStore.load(path)


def test_all_checkpoints_damaged_is_an_error_that_names_each_and_not_a_fresh_start(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        truncate(store.save(checkpoint(step)) / "model.safetensors")
    with pytest.raises(CheckpointError, match="000000000002.*000000000001"):
        store.load_latest()


def test_resuming_before_a_damaged_checkpoint_never_prunes_what_was_saved_since(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(100), best=True)
    truncate(store.save(checkpoint(200)) / "model.safetensors")
    resumed = CheckpointStore(tmp_path, keep=1)
    first = resumed.load_latest()
    assert first is not None and first.checkpoint.step == 100
    for step in (150, 190, 200, 250):
        resumed.save(checkpoint(step))
        loaded = CheckpointStore(tmp_path, keep=1).load_latest()
        assert loaded is not None and loaded.checkpoint.step == step
    assert names(tmp_path) == ["000000000100", "000000000250", "best", "latest"]


def test_pruning_keeps_the_last_k_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in range(1, 9):
        store.save(checkpoint(step), best=step == 2)
    assert names(tmp_path) == [f"00000000000{step}" for step in (2, 6, 7, 8)] + ["best", "latest"]
    store.mark_best(7)
    store.save(checkpoint(9))
    assert names(tmp_path) == [f"00000000000{step}" for step in (7, 8, 9)] + ["best", "latest"]
    best = store.load_best()
    assert best is not None and best.step == 7


def test_pointers_name_a_directory_and_latest_is_never_followed_blindly(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1), best=True)
    store.save(checkpoint(2))
    assert (tmp_path / "latest").read_text() == "000000000002\n"
    assert (tmp_path / "best").read_text() == "000000000001\n"
    (tmp_path / "latest").write_text("000000000001\n")
    loaded = store.load_latest()
    assert loaded is not None and loaded.checkpoint.step == 2


@pytest.mark.parametrize("content", ["../../etc", "", "\x00", "best"])
def test_a_best_pointer_that_names_no_checkpoint_is_refused(tmp_path: Path, content: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1))
    (tmp_path / "best").write_text(content)
    with pytest.raises(CheckpointError, match="best.*names no checkpoint"):
        store.load_best()


def test_marking_a_step_that_was_not_saved_names_those_that_were(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7.*000000000001"):
        store.mark_best(7)


def test_saving_a_step_again_replaces_it_and_keeps_the_steps_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    for games in range(3):
        store.save(Checkpoint(2, {}, {}, {"games": games}))
    loaded = store.load_latest()
    assert loaded is not None
    assert (loaded.checkpoint.step, loaded.checkpoint.state) == (2, {"games": 2})
    assert names(tmp_path) == ["000000000001", "000000000002-3", "latest"]


def test_a_best_checkpoint_survives_its_step_being_saved_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(2), best=True)
    store.save(Checkpoint(2, {}, {}, {}))
    best = store.load_best()
    assert best is not None and best.state == checkpoint(2).state


def test_a_checkpoint_of_another_schema_is_refused_and_both_are_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(1))
    path = store.save(checkpoint(2))
    same = {"actions": 6, "observation": {"dtype": "uint8", "shape": (84, 84)}}
    assert store.load(path, expect_schema=same).schema == SCHEMA
    for load in (store.load_latest, lambda expect_schema: store.load(path, expect_schema)):
        with pytest.raises(SchemaError, match=r"000000000002.*actions is 6, expected 18"):
            load(expect_schema={**SCHEMA, "actions": 18})


def test_what_an_interrupted_save_left_is_removed_by_the_next_save_and_never_read(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    whole = store.save(checkpoint(1))
    shutil.copytree(whole, tmp_path / "000000000005.tmp-0badcafe")
    (tmp_path / "best.tmp-0badcafe").write_text("0000")
    loaded = CheckpointStore(tmp_path, keep=2).load_latest()
    assert loaded is not None and loaded.checkpoint.step == 1
    assert "000000000005.tmp-0badcafe" in names(tmp_path), "a reader removes nothing"
    CheckpointStore(tmp_path, keep=2).save(checkpoint(2))
    assert names(tmp_path) == ["000000000001", "000000000002", "latest"]


def test_a_negative_step_and_a_store_that_keeps_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="-1"):
        CheckpointStore(tmp_path, keep=1).save(checkpoint(-1))
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(tmp_path, keep=0)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.save(checkpoint(1))
    torch.save({"weight": torch.zeros(3)}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        store.load(path)


def test_every_byte_is_on_disk_before_its_name_is_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def plain(path: object) -> str:
        return re.sub(r"\.tmp-\w+", ".tmp", os.path.relpath(str(path), tmp_path))

    def traced_fsync(descriptor: int) -> None:
        events.append("sync " + plain(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def traced_rename(source: Path, target: Path) -> None:
        events.append("rename " + plain(target))
        (rename if source.is_dir() else replace)(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.setattr(os, "replace", traced_rename)
    CheckpointStore(tmp_path, keep=1).save(checkpoint(1), best=True)
    assert events == [
        *(f"sync 000000000001.tmp/{file}" for file in FILES),
        *("sync 000000000001.tmp", "sync latest.tmp", "sync best.tmp"),
        *("rename 000000000001", "sync ."),
        *("rename latest", "rename best", "sync ."),
    ]


DAMAGED = int(os.environ.get("RL_CLUSTER_DAMAGED", "100"))


def test_every_one_of_many_damaged_files_is_refused(tmp_path: Path) -> None:
    """Truncated, with a flipped bit, with a zeroed page: anywhere, in any file."""
    random = np.random.default_rng(0)
    tensors = {"weight": torch.rand(40_000)}
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(Checkpoint(1, tensors, tensors, {"note": "x" * 9999}))
    refused = 0
    for number in range(DAMAGED):
        file = path / FILES[number % len(FILES)]
        saved = file.read_bytes()
        damaged = bytearray(saved)
        position = int(random.integers(len(saved)))
        if number % 3 == 0:
            del damaged[position:]
        elif number % 3 == 1:
            damaged[position] ^= 1 << int(random.integers(8))
        else:
            page = position // 4096 * 4096
            damaged[page : page + 4096] = bytes(len(damaged[page : page + 4096]))
        file.write_bytes(damaged)
        try:
            CheckpointStore.load(path)
        except CheckpointError as error:
            refused += file.name in str(error)
        file.write_bytes(saved)
    print(f"{refused} of {DAMAGED} damaged files refused")
    assert refused == DAMAGED
    assert CheckpointStore.load(path).step == 1


def fence_of(directory: Path) -> Fence:
    """The fence of a new life of the task."""
    return Fence(directory / "epoch", advance(directory / "epoch", 1.0))


def newest(directory: Path) -> Path:
    loaded = CheckpointStore(directory, keep=1).load_latest()
    assert loaded is not None
    return loaded.path


def test_a_life_that_is_over_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    stale = CheckpointStore(directory, keep=1, fence=fence_of(tmp_path))
    stale.save(checkpoint(1))
    stale.save(checkpoint(2), best=True)
    fence_of(tmp_path)
    before = names(directory)
    for change in (
        lambda: stale.save(checkpoint(3), best=True),
        lambda: stale.mark_best(2),
        lambda: stale.mark_candidate(2),
    ):
        with pytest.raises(StaleEpoch, match="epoch 2.*of epoch 1"):
            change()
        assert names(directory) == before


def test_a_life_that_ends_in_the_middle_of_a_save_commits_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "checkpoints"
    store = CheckpointStore(directory, keep=2, fence=fence_of(tmp_path))
    store.save(checkpoint(1))
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("model.safetensors"):
            fence_of(tmp_path)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(StaleEpoch):
        store.save(checkpoint(2))
    assert names(directory) == ["000000000001", "latest"]


def test_a_later_life_is_ahead_of_higher_steps_of_the_one_before(tmp_path: Path) -> None:
    """As when the newest checkpoints could not be read at resume, and later could."""
    directory = tmp_path / "checkpoints"
    first = CheckpointStore(directory, keep=3, fence=fence_of(tmp_path))
    for step in (100, 120, 140):
        first.save(checkpoint(step), best=step == 100)
    second = CheckpointStore(directory, keep=3, fence=fence_of(tmp_path))
    assert second.save(checkpoint(110)) == newest(directory)
    assert second.save(checkpoint(140)) == newest(directory)
    assert second.mark_candidate(140).name == "000000000140-1"
    steps = [f"000000000{name}" for name in ("100", "110", "120", "140-1")]
    assert names(directory) == [*steps, "best", "candidate", "latest"]
    for step in (150, 160):
        assert second.save(checkpoint(step)) == newest(directory)
    steps = [f"000000000{name}" for name in ("100", "140-1", "150", "160")]
    assert names(directory) == [*steps, "best", "candidate", "latest"]


def test_a_checkpoint_written_before_there_were_epochs_is_the_oldest(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    path = CheckpointStore(directory, keep=3).save(checkpoint(7))
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["epoch"], manifest["sha256"]
    summed = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": summed}, indent=1))
    assert newest(directory) == path
    store = CheckpointStore(directory, keep=3, fence=fence_of(tmp_path))
    assert store.save(checkpoint(5)) == newest(directory)


def test_what_is_saved_after_a_resume_is_ahead_of_what_it_resumed_from_whatever_its_epoch(
    tmp_path: Path,
) -> None:
    """As after copying another run's checkpoints here."""
    directory = tmp_path / "checkpoints"
    for _ in range(5):
        other = fence_of(tmp_path / "other run")
    CheckpointStore(directory, keep=1, fence=other).save(checkpoint(100))
    store = CheckpointStore(directory, keep=1, fence=fence_of(tmp_path))
    assert store.load_latest() is not None
    assert store.save(checkpoint(101)) == newest(directory)
    assert names(directory) == ["000000000101", "latest"]


def test_a_damaged_manifest_of_a_higher_step_is_refused_by_later_lives_until_it_is_passed(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "checkpoints"
    first = CheckpointStore(directory, keep=1, fence=fence_of(tmp_path))
    first.save(checkpoint(100), best=True)
    truncate(first.save(checkpoint(200)) / "manifest.json")
    second = CheckpointStore(directory, keep=1, fence=fence_of(tmp_path))
    loaded = second.load_latest()
    assert loaded is not None and loaded.checkpoint.step == 100 and len(loaded.refused) == 1
    for step in (150, 190, 250):
        assert second.save(checkpoint(step)) == newest(directory)
    assert names(directory) == ["000000000100", "000000000250", "best", "latest"]


CRASH_AT_EVERY_POINT = """
import os, shutil, sys, torch
from pathlib import Path
from rl_cluster.checkpoint import Checkpoint, CheckpointStore
from rl_cluster.fence import Fence, advance

torch.set_num_threads(1)
root = Path(sys.argv[1])
CRASHED = 9

def content(step, life):
    tensors = {"weight": torch.full((2000,), float(step))}
    return Checkpoint(step, tensors, tensors, {"step": step, "life": life})

def crash_before(point):
    # End the process before its call number `point` that changes a file or makes it durable.
    calls = 0
    def counted(call):
        def wrapped(*arguments, **options):
            nonlocal calls
            if calls == point:
                os._exit(CRASHED)
            calls += 1
            return call(*arguments, **options)
        return wrapped
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    here, open_ = counted(lambda: None), Path.open
    class HalfWritten:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *error): self.file.close()
        def fileno(self): return self.file.fileno()
        def flush(self): self.file.flush()
        def write(self, data):
            here()
            self.file.write(data[:len(data) // 2])
            self.file.flush()
            here()
            self.file.write(data[len(data) // 2:])
    def opened(path, mode="r", *arguments, **options):
        file = open_(path, mode, *arguments, **options)
        return HalfWritten(file) if "x" in mode else file
    Path.open = opened

def check_whole(directory, expected):
    store = CheckpointStore(directory, keep=1, fence=FENCE)
    loaded = store.load_latest()
    assert loaded is not None and not loaded.refused, loaded
    checkpoint = loaded.checkpoint
    assert (checkpoint.step, checkpoint.state["life"]) in expected, checkpoint.state
    assert float(checkpoint.model["weight"][-1]) == checkpoint.step == checkpoint.state["step"]
    assert store.load_best().step in (1, 2)
    for path in directory.glob("0*"):
        if ".tmp-" not in path.name:
            store.load(path)
    store.save(content(9, "after"))
    litter = [name for name in os.listdir(directory) if ".tmp-" in name]
    assert not litter, litter

FENCE = Fence(root / "epoch", advance(root / "epoch", 1.0))
pristine = root / "pristine"
store = CheckpointStore(pristine, keep=1, fence=FENCE)
store.save(content(1, "old"), best=True)
store.save(content(2, "old"))
changes = {
    "save": (lambda store: store.save(content(3, "new")), {(2, "old"), (3, "new")}),
    "best": (lambda store: store.save(content(2, "new"), best=True), {(2, "old"), (2, "new")}),
    "mark": (lambda store: store.mark_best(2), {(2, "old")}),
}
for name, (change, expected) in changes.items():
    point, status = 0, CRASHED
    while status == CRASHED:
        directory = root / f"{name}-{point}"
        shutil.copytree(pristine, directory)
        child = os.fork()
        if not child:
            store = CheckpointStore(directory, keep=1, fence=FENCE)
            crash_before(point)
            change(store)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, CRASHED), status
        check_whole(directory, expected)
        shutil.rmtree(directory)
        point += 1
    print(name, point - 1)
"""


def test_a_crash_at_every_point_of_a_save_leaves_the_old_or_the_new_checkpoint_whole(
    tmp_path: Path,
) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", CRASH_AT_EVERY_POINT, str(tmp_path)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    print(finished.stdout)
    points = {line.split()[0]: int(line.split()[1]) for line in finished.stdout.splitlines()}
    # Each file is opened, half written, written and synced; then come renames and removals.
    assert points["save"] >= 3 * (len(FILES) + 1) + 4
    assert points["best"] > points["save"] > points["mark"] >= 5


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.save(checkpoint(2)),
        lambda store: store.save(checkpoint(1), best=True),
        lambda store: store.mark_best(1),
        lambda store: store.mark_candidate(1),
    ],
    ids=["save", "save the best", "mark the best", "mark a candidate"],
)
def test_a_disk_with_too_few_pages_for_a_change_keeps_what_was_and_gets_no_litter(
    tmp_path: Path, change: Callable[[CheckpointStore], Path]
) -> None:
    with small_disk(tmp_path, size_kib=256) as disk:
        store = CheckpointStore(disk / "checkpoints", keep=2, fence=fence_of(disk))
        store.save(checkpoint(1), best=True)
        before = names(store.directory)
        pages = 0
        while True:
            fill(disk / "others", leave_pages=pages)
            try:
                done = change(store)
            except CheckpointError as error:
                assert "No space left" in str(error)
            else:
                break
            assert names(store.directory) == before
            loaded = CheckpointStore(store.directory, keep=2).load_latest()
            assert loaded is not None and loaded.checkpoint.step == 1 and not loaded.refused
            pages += 1
        assert pages, "with no page left, no change can be made"
        assert CheckpointStore.load(done).step in (1, 2)
        (disk / "others").unlink()
        assert store.save(checkpoint(3)) == newest(store.directory)


SAVE_FOR_EVER = """
import sys, torch
from rl_cluster.checkpoint import Checkpoint, CheckpointStore

store = CheckpointStore(sys.argv[1], keep=2)
loaded = store.load_latest()
step = loaded.checkpoint.step if loaded else 0
while True:
    step += 1
    tensors = {"weight": torch.full((400_000,), float(step))}
    store.save(Checkpoint(step, tensors, tensors, {"step": step}), best=step % 3 == 0)
    print(step, flush=True)
"""


def test_kill_9_in_the_middle_of_a_save_loses_at_most_that_save(tmp_path: Path) -> None:
    finished = 0
    for delay_s in np.random.default_rng(0).uniform(0.0, 0.06, 5):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=delay_s)
            process.send_signal(signal.SIGKILL)
            finished = max([first, *map(int, process.stdout.read().split())])
        loaded = CheckpointStore(tmp_path, keep=2).load_latest()
        assert loaded is not None
        assert not loaded.refused
        assert loaded.checkpoint.step in (finished, finished + 1)
        assert loaded.checkpoint.state == {"step": loaded.checkpoint.step}
        assert loaded.checkpoint.model["weight"][-1] == loaded.checkpoint.step
        if finished > 3:
            assert CheckpointStore(tmp_path, keep=2).load_best() is not None


SAVE_ON_A_FULL_DISK = """
import os, resource, sys, torch
from rl_cluster.checkpoint import Checkpoint, CheckpointError, CheckpointStore

store = CheckpointStore(sys.argv[1], keep=2)
store.save(Checkpoint(1, {"weight": torch.ones(100)}, {}, {}), best=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.save(Checkpoint(2, {"weight": torch.ones(100)}, {"m": torch.ones(100_000)}, {}))
except CheckpointError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sorted(os.listdir(sys.argv[1])))
assert store.load_latest().checkpoint.step == 1
store.save(Checkpoint(3, {}, {}, {}))
"""


def test_a_full_disk_gives_a_clear_error_and_leaves_the_old_checkpoints_and_no_litter(
    tmp_path: Path,
) -> None:
    output = subprocess.run(
        [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "File too large" in output
    assert "Earlier checkpoints are untouched; free space there" in output
    assert "['000000000001', 'best', 'latest']" in output
    assert names(tmp_path) == ["000000000001", "000000000003", "best", "latest"]
