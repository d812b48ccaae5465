"""The fence: a writer whose epoch is over commits nothing, whenever it was frozen or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import fill, small_disk

from rl_cluster.fence import Fence, FenceDamaged, FenceHeld, StaleEpoch, advance, read_epoch

ROUNDS = int(os.environ.get("RL_CLUSTER_FENCE_ROUNDS", "50"))

COMMIT_FOR_EVER = """
import sys
from pathlib import Path
from rl_cluster.fence import Fence, StaleEpoch

path, epoch, between_rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fence = Fence(path / "epoch", epoch)
print("started", flush=True)
try:
    while True:
        for _ in range(between_rounds):
            pass
        with fence.hold(), (path / "committed").open("a") as store:
            store.write(f"{epoch}\\n")
except StaleEpoch as error:
    print(error, flush=True)
"""

FREEZE_WITHIN = """
import os, signal, sys
from pathlib import Path
from rl_cluster.fence import Fence, StaleEpoch

path, epoch, where = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
try:
    if where == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    with Fence(path / "epoch", epoch).hold():
        if where == "within":
            os.kill(os.getpid(), signal.SIGSTOP)
        (path / "committed").write_text(f"{epoch}")
except StaleEpoch as error:
    print(error, flush=True)
"""


@contextmanager
def writer(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `script`; dead at the end, however the test goes."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read()


def wait_until_frozen(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def test_a_missing_file_is_epoch_0_and_each_advance_ends_one(tmp_path: Path) -> None:
    path = tmp_path / "task" / "epoch"
    assert read_epoch(path) == 0
    with Fence(path, 0).hold():
        pass
    assert [advance(path, 1.0) for _ in range(3)] == [1, 2, 3]
    assert read_epoch(path) == 3
    assert sorted(os.listdir(path.parent)) == ["epoch", "epoch.lock"]


@pytest.mark.parametrize("mine", [0, 2, 9])
def test_another_epoch_than_the_present_is_refused_and_both_are_named(
    tmp_path: Path, mine: int
) -> None:
    path = tmp_path / "epoch"
    for _ in range(3):
        advance(path, 1.0)
    with pytest.raises(StaleEpoch, match=rf"epoch 3.*of epoch {mine}"), Fence(path, mine).hold():
        pytest.fail("was let in")
    with Fence(path, 3).hold():
        pass


def test_an_epoch_does_not_end_while_somebody_commits_under_it(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    fence = Fence(path, advance(path, 1.0))
    with fence.hold(), fence.hold():
        with pytest.raises(FenceHeld, match=r"epoch\.lock.*kill"):
            advance(path, 0.05)
        assert read_epoch(path) == 1
    assert advance(path, 1.0) == 2


def test_the_lock_is_let_go_when_a_commit_raises(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    with pytest.raises(OSError, match="disk"), Fence(path, 0).hold():
        raise OSError("disk")
    assert advance(path, 1.0) == 1


def test_a_child_forked_within_a_commit_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    with Fence(path, 0).hold():
        child = os.fork()
        if not child:
            signal.pause()
    try:
        assert advance(path, 1.0) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_threads_advancing_at_once_each_get_an_epoch_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    epochs: list[int] = []
    threads = [
        threading.Thread(target=lambda: epochs.extend(advance(path, 30.0) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 21))


def test_a_writer_frozen_before_its_check_is_refused_when_it_thaws(tmp_path: Path) -> None:
    epoch = advance(tmp_path / "epoch", 1.0)
    with writer(FREEZE_WITHIN, tmp_path, epoch, "before") as process:
        wait_until_frozen(process)
        assert advance(tmp_path / "epoch", 1.0) == epoch + 1
        process.send_signal(signal.SIGCONT)
        assert f"is at epoch {epoch + 1}" in said(process)
    assert not (tmp_path / "committed").exists()


def test_a_writer_frozen_within_its_commit_has_to_be_killed_first(tmp_path: Path) -> None:
    epoch = advance(tmp_path / "epoch", 1.0)
    with writer(FREEZE_WITHIN, tmp_path, epoch, "within") as process:
        wait_until_frozen(process)
        with pytest.raises(FenceHeld):
            advance(tmp_path / "epoch", 0.05)
        process.kill()
        assert advance(tmp_path / "epoch", 10.0) == epoch + 1
    assert not (tmp_path / "committed").exists()


def test_writers_frozen_at_random_moments_make_no_stale_write(tmp_path: Path) -> None:
    path, store = tmp_path / "epoch", tmp_path / "committed"
    stale_writes, refused, killed = 0, 0, 0
    random = np.random.default_rng(4)
    for round_ in range(ROUNDS):
        epoch = advance(path, 1.0)
        # Every other writer is mostly within its commit, the others mostly outside it.
        with writer(COMMIT_FOR_EVER, tmp_path, epoch, 20_000 * (round_ % 2)) as process:
            assert process.stdout is not None and process.stdout.readline() == "started\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=random.uniform(0.0, 0.01))
            process.send_signal(signal.SIGSTOP)
            wait_until_frozen(process)
            try:
                advance(path, 0.02)
            except FenceHeld:
                process.kill()
                process.wait()
                advance(path, 1.0)
                killed += 1
            committed = store.read_bytes() if store.exists() else b""
            process.send_signal(signal.SIGCONT)
            refused += "another took its place" in said(process)
            stale_writes += (store.read_bytes() if store.exists() else b"") != committed
    print(f"{ROUNDS} rounds: {refused} refused, {killed} killed, {stale_writes} stale writes")
    assert (stale_writes, refused + killed) == (0, ROUNDS)
    assert refused and killed, "both kinds of freeze have to have happened"


ADVANCE_FOR_EVER = """
import sys
from pathlib import Path
from rl_cluster.fence import advance

while True:
    print(advance(Path(sys.argv[1]), 10.0), flush=True)
"""


def test_kill_9_within_advance_never_takes_the_epoch_back(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    for delay_s in np.random.default_rng(0).uniform(0.0, 0.01, 10):
        before = read_epoch(path)
        with writer(ADVANCE_FOR_EVER, path) as process:
            assert process.stdout is not None
            epochs = [int(process.stdout.readline())]
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=delay_s)
            process.kill()
            epochs += map(int, said(process).split())
        assert epochs == list(range(before + 1, before + 1 + len(epochs)))
        assert read_epoch(path) in (epochs[-1], epochs[-1] + 1)


class Cut(BaseException):
    """The machine stops here."""


@settings(max_examples=100)
@given(
    advances=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4096), st.booleans()), min_size=1, max_size=8
    )
)
def test_writes_cut_short_anywhere_never_go_below_an_epoch_that_was_handed_out(
    advances: list[tuple[int, int, bool]],
) -> None:
    """Each advance is cut in its write number `at` after `written` bytes; 2 is not at all."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "epoch"
        handed_out = advance(path, 1.0)
        pwrite = os.pwrite
        for at, written, zeroed in advances:
            writes = 0

            def cut(descriptor: int, content: bytes, offset: int) -> int:
                nonlocal writes
                if writes == at:  # noqa: B023 - called in this round only
                    pwrite(descriptor, content[:written], offset)  # noqa: B023
                    if zeroed:  # noqa: B023
                        pwrite(descriptor, bytes(4096 - written), offset + written)  # noqa: B023
                    raise Cut
                writes += 1
                return pwrite(descriptor, content, offset)

            patch.setattr(os, "pwrite", cut)
            before = read_epoch(path)
            with suppress(Cut):
                handed_out = advance(path, 1.0)
            assert max(before, handed_out) <= read_epoch(path) <= before + 1


@settings(max_examples=100)
@given(start=st.integers(0, 4096), damaged=st.integers(1, 4096), value=st.integers(0, 255))
def test_damage_of_either_copy_changes_nothing(start: int, damaged: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "epoch"
        for _ in range(3):
            advance(path, 1.0)
        content = bytearray(path.read_bytes())
        stop = min(start + damaged, 4096 if start < 4096 else 8192)
        content[start:stop] = bytes([value]) * (stop - start)
        path.write_bytes(content)
        assert read_epoch(path) == 3
        assert advance(path, 1.0) == 4


def test_every_bit_of_a_copy_counts(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    for _ in range(3):
        advance(path, 1.0)
    content = path.read_bytes()
    line = content.index(b"\n")
    for position in [*range(8 * line), *range(8 * 4096, 8 * (4096 + line))]:
        altered = bytearray(content)
        altered[position // 8] ^= 1 << position % 8
        path.write_bytes(altered)
        assert read_epoch(path) == 3


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"3\n"])
def test_an_epoch_that_cannot_be_read_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "epoch"
    path.write_bytes(content)
    for epoch in (0, 3):
        with pytest.raises(FenceDamaged, match="remove the file"), Fence(path, epoch).hold():
            pytest.fail("was let in")
    with pytest.raises(FenceDamaged):
        advance(path, 1.0)


def test_a_full_disk_does_not_keep_an_epoch_from_ending(tmp_path: Path) -> None:
    with small_disk(tmp_path, size_kib=64) as disk:
        advance(disk / "epoch", 1.0)
        fill(disk / "others", leave_pages=0)
        assert advance(disk / "epoch", 1.0) == 2
