"""Disks that fill and files that rot: nothing torn is left, nothing damaged is used, all go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_checkpoint
import test_replay_journal
from live_run import lines
from small_disk import PAGE, small_disk

from chaos.counts import count, only_in_full
from chaos.figures import record_figure
from chaos.support import (
    CATCH,
    SETTINGS,
    ChaosRun,
    chaos_run,
)
from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.control import Control
from rl_cluster.disk import write_text_atomically
from rl_cluster.replay.journal_segments import RefusedRecord, list_segments, newest_first

pytestmark = pytest.mark.chaos
DISK_KIB, RESERVE_BYTES = 96 << 10, 48 << 20
FULL_DISK = (
    f"defaults.replay.disk_reserve_bytes={RESERVE_BYTES}",
    "defaults.checkpoint.period_s=2",
    "telemetry.tensorboard=true",
    "load.pressure.disk_free_low_bytes=0",
    "load.pressure.disk_free_high_bytes=0",
)
DAMAGED = count(300, 60)
ROW = "disk full"


# A disk that fills ---------------------------------------------------------------------------


def free_bytes(disk: Path) -> int:
    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize


@contextmanager
def kept_full(disk: Path) -> Iterator[None]:
    """Take every page of a disk, those that are given back meanwhile included."""
    ballast, done = disk / "others", threading.Event()

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file:
            while not done.wait(0.02):
                try:
                    while True:
                        file.write(bytes(PAGE))
                except OSError:
                    continue

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    try:
        yield
    finally:
        done.set()
        filler.join()
        ballast.unlink()


def newest_name(run: ChaosRun) -> str:
    return (run.run_dir / "Catch" / "checkpoints" / "latest").read_text().strip()


def await_save(run: ChaosRun) -> float:
    """Seconds until there is a newer checkpoint than now."""
    start_s, old = time.monotonic(), newest_name(run)
    run.until(lambda: newest_name(run) != old, 60, "another checkpoint")
    return time.monotonic() - start_s


def await_pulses(run: ChaosRun, count_: int) -> None:
    """Wait for so many ticks of the supervisor; they need no room."""
    control = Control(run.run_dir)
    for _ in range(count_):
        pulse = control.pulse("supervisor")
        run.until(lambda pulse=pulse: control.pulse("supervisor") != pulse, 60, "a tick")  # type: ignore[misc]


def check_nothing_torn(run_dir: Path) -> None:
    """Every checkpoint, record and line is whole; what the killed had begun goes with a write."""
    for path in (run_dir / "Catch" / "checkpoints").glob("0*"):
        CheckpointStore.load(path)
    found = list(newest_first(list_segments(run_dir / "Catch" / "replay")))
    assert found and not [each for each in found if isinstance(each, RefusedRecord)]
    for name in ("metrics.jsonl", "incidents.jsonl", "boots.jsonl", "Catch/evaluations.jsonl"):
        lines(run_dir / name)  # raises where one is torn; an incident may have found no room
    for directory in {path.parent for path in unfinished(run_dir)}:
        write_text_atomically(directory / "another", "")
    assert not unfinished(run_dir)


def unfinished(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.rglob("*") if ".tmp" in path.name]


@pytest.mark.timeout(600)
def test_a_full_disk_stops_neither_training_nor_the_supervisor_and_tears_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    with (
        small_disk(tmp_path / "run", DISK_KIB) as disk,
        chaos_run(tmp_path, *FULL_DISK) as run,
    ):
        _below_the_reserve(run, disk)
        updates = run.updates()
        with kept_full(disk):
            start_s = time.time()
            _let_every_save_fail(run)
            full_s = time.time() - start_s
        (disk / "ballast").unlink()
        _goes_on_by_itself(run, start_s, updates, full_s)
        run.end_well()
        assert run.process.returncode == 130, "it was stopped by a command"
        check_nothing_torn(run.run_dir)


def _below_the_reserve(run: ChaosRun, disk: Path) -> None:
    """The journal pauses and says so; checkpoints go on in the room that it leaves."""
    (disk / "ballast").write_bytes(bytes(free_bytes(disk) - RESERVE_BYTES // 2))
    run.until(lambda: run.incidents(kind="journal_paused"), 30, "a pause of the journal")
    assert "are left to others" in run.incidents(kind="journal_paused")[0]["cause"]
    for _ in range(2):
        await_save(run)
    assert not run.incidents(kind="checkpoint_failed")


def _let_every_save_fail(run: ChaosRun) -> None:
    """While nothing can be written, the supervisor dies, too, and its heir takes the workers."""
    workers = {role: run.the(role).pid for role in ("learner", "replay", "rollout", "weights")}
    await_pulses(run, 2)  # one may have found the last room
    summary = run.summary()
    await_pulses(run, 6)
    assert run.summary() == summary, "the disk is not full"
    old = run.the("supervisor")
    run.kill(old)
    run.until(lambda: [p for p in run.role("supervisor") if p.pid != old.pid], 60, "an heir")
    await_pulses(run, 4)
    assert {role: run.the(role).pid for role in workers} == workers


def _goes_on_by_itself(run: ChaosRun, start_s: float, updates: int, full_s: float) -> None:
    record_figure(ROW, "until the next checkpoint once there is room", await_save(run), "s")
    run.until(lambda: run.incidents(start_s, "journal_resumed"), 30, "the journal's return")
    failed = run.until(lambda: run.incidents(start_s, "checkpoint_failed"), 30, "an incident")
    assert "No space left" in failed[0]["cause"]
    rise = run.await_rise(("learner_updates", "env_steps"), time.time())
    learned = run.updates() - updates
    assert learned > 0 and run.summary()["tasks"]["Catch"]["restarts"] == 0
    record_figure(ROW, "updates while nothing could be written", learned, "updates")
    record_figure(ROW, "nothing could be written for", full_s, "s")
    charts = run.run_dir / "tensorboard" / "Catch"
    newest_s = lambda: max(path.stat().st_mtime for path in charts.iterdir())  # noqa: E731
    run.until(lambda: newest_s() > rise, 30, "charts that go on")


@only_in_full("a second disk, and a run that is stopped on it")
def test_a_run_is_stopped_on_a_full_disk_and_its_last_checkpoints_stand(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        small_disk(tmp_path / "run", DISK_KIB) as disk,
        chaos_run(tmp_path, *FULL_DISK) as run,
    ):
        with kept_full(disk):
            await_pulses(run, 4)
            start_s = time.monotonic()
            assert run.interrupt() == 130, run.story()
            record_figure(ROW, "stopped in", time.monotonic() - start_s, "s")
            run.check_nothing_left()
        check_nothing_torn(run.run_dir)
        with ChaosRun(CATCH, tmp_path / "run", *SETTINGS, *FULL_DISK, resume=True) as again:
            again.await_rise(("learner_updates",), time.time())
            again.end_well()


# Files that rot ------------------------------------------------------------------------------


def test_every_damaged_file_is_refused_and_the_rest_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them checkpoints, half of them segments of the journal."""
    monkeypatch.setattr(test_checkpoint, "DAMAGED", DAMAGED // 2)
    monkeypatch.setattr(test_replay_journal, "DAMAGED", DAMAGED // 2)
    (tmp_path / "checkpoints").mkdir()
    test_checkpoint.test_every_one_of_many_damaged_files_is_refused(tmp_path / "checkpoints")
    for how in ("truncate", "flip", "zero"):
        (tmp_path / how).mkdir()
        test_replay_journal.test_damaged_files_give_right_blocks_and_reasons(tmp_path / how, how)
    record_figure("damaged files", "refused", DAMAGED, f"of {DAMAGED}")


@pytest.mark.timeout(500)
@only_in_full("two sessions of a live run")
@pytest.mark.parametrize("how", ["truncate", "flip", "zero"])
def test_a_run_resumes_beside_damaged_files_and_says_so(tmp_path: Path, how: str) -> None:
    with chaos_run(tmp_path) as run:
        replay = run.run_dir / "Catch" / "replay"
        run.until(lambda: len(list((run.run_dir / "Catch" / "checkpoints").glob("0*"))) > 1, 60, "")
        run.end_well()
    loaded = CheckpointStore(run.run_dir / "Catch" / "checkpoints", keep=1).load_latest()
    segments = [each for each in list_segments(replay) if each.path.stat().st_size]
    assert loaded is not None and segments
    rng = np.random.default_rng(len(how))
    test_replay_journal.damage(loaded.path / "model.safetensors", how, rng)
    test_replay_journal.damage(segments[-1].path, how, rng)
    with ChaosRun(CATCH, run.run_dir, *SETTINGS, resume=True) as again:
        refused = again.until(lambda: again.incidents(kind="checkpoint_refused"), 90, "a refusal")
        assert (
            loaded.path.name in refused[0]["cause"] and "model.safetensors" in refused[0]["cause"]
        )
        again.until(lambda: again.incidents(kind="restored"), 60, "what came back")
        if how != "truncate":  # a cut end looks like one that was never written
            damaged = again.until(lambda: again.incidents(kind="journal_damaged"), 60, "damage")
            assert segments[-1].path.name in damaged[0]["cause"]
        again.await_rise(("learner_updates", "env_steps"), time.time())
        again.end_well()


# Crashes -------------------------------------------------------------------------------------


@only_in_full("tests/test_checkpoint.py and tests/test_replay_journal.py have it")
def test_a_crash_at_every_point_of_a_save(tmp_path: Path) -> None:
    """Of a checkpoint and of the journal; `kill -9` at random moments is a row of its own."""
    checkpoints, journal = tmp_path / "checkpoints", tmp_path / "journal"
    for directory in (checkpoints, journal):
        directory.mkdir()
    test_checkpoint.test_a_crash_at_every_point_of_a_save_leaves_the_old_or_the_new_checkpoint_whole(
        checkpoints
    )
    for how in (test_replay_journal.die_before, test_replay_journal.die_after):
        (journal / how.__name__).mkdir()
        test_replay_journal.test_a_crash_at_every_point_loses_no_block_that_was_written(
            journal / how.__name__, how
        )
