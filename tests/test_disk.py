"""Files that are replaced whole: an old one or a new one, and nothing beside it for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rl_cluster.disk import replacing, write_text_atomically

HALF_WRITTEN = """
import sys, time
from pathlib import Path
from rl_cluster.disk import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half of ")
    file.flush()
    print("written", flush=True)
    time.sleep(600)
"""


def half_writer(path: Path) -> subprocess.Popen[str]:
    """A process that has begun to replace `path`, and gets no further."""
    writer = subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "written\n"
    return writer


def test_what_a_killed_writer_left_is_gone_with_the_next_write_in_its_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.json").write_text("old")
    writer = half_writer(tmp_path / "state.json")
    writer.kill()
    writer.wait()
    assert len(os.listdir(tmp_path)) == 2, "it was killed too late"
    assert (tmp_path / "state.json").read_text() == "old"
    write_text_atomically(tmp_path / "other.json", "new")
    assert sorted(os.listdir(tmp_path)) == ["other.json", "state.json"]


def test_what_a_living_writer_has_begun_stays_even_while_it_is_frozen(tmp_path: Path) -> None:
    writer = half_writer(tmp_path / "state.json")
    try:
        writer.send_signal(signal.SIGSTOP)
        write_text_atomically(tmp_path / "state.json", "new")
        assert len(os.listdir(tmp_path)) == 2
    finally:
        writer.kill()
        writer.wait()
    assert (tmp_path / "state.json").read_text() == "new"


def test_a_block_that_raises_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("old")
    with pytest.raises(ValueError, match="too late"), replacing(tmp_path / "state.json") as file:
        file.write(b"new")
        raise ValueError("too late")
    assert os.listdir(tmp_path) == ["state.json"]
    assert (tmp_path / "state.json").read_text() == "old"


def test_hidden_temporary_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".theirs.tmp").write_text("of another program")
    write_text_atomically(tmp_path / "state.json", "new")
    assert sorted(os.listdir(tmp_path)) == [".theirs.tmp", "state.json"]


def test_many_writers_at_once_take_nothing_from_each_other(tmp_path: Path) -> None:
    """One that took another's file for abandoned would fail the other's rename."""
    failed: list[OSError] = []

    def write(number: int) -> None:
        try:
            for count in range(100):
                write_text_atomically(tmp_path / f"{number % 3}.json", f"{number} {count}")
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert sorted(os.listdir(tmp_path)) == ["0.json", "1.json", "2.json"]
