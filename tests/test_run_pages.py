"""Every block of every page, as a reader would copy it: top to bottom, in a checkout.

The run that pages speak of is the one that docs/start.md begins; all pages share it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live_run import ROOT
from pages import Block, copied_blocks, pages
from wandb_files import found, history

from rl_cluster.control import RUN_MARK

FIRST = "docs/start.md"
"""What a newcomer types; the other pages' tests are long."""
PAGES = [
    pytest.param(page, id=name, marks=() if name == FIRST else pytest.mark.long)
    for page in pages()
    if any(block.mark in ("", "goes on:") for block in copied_blocks(page))
    for name in [str(page.relative_to(ROOT))]
]
_BLOCK_S = 240.0  # a deadlock, on a machine that others use, too


class Reader:
    """Someone with a checkout, who copies blocks into a shell, and into Python."""

    def __init__(self, directory: Path) -> None:
        self.checkout, self._state = directory / "checkout", directory / "variables"
        made_here = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
        unwanted = shutil.ignore_patterns(".git", *made_here)
        shutil.copytree(ROOT, self.checkout, ignore=unwanted)
        programs = directory / "bin"
        programs.mkdir()
        (programs / "rl-cluster").write_text(
            f'#!/bin/sh\nexec {sys.executable} -m rl_cluster.cli "$@"\n'
        )
        (programs / "rl-cluster").chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("WANDB_")},
            "PATH": path,
            "PYTHONPATH": str(self.checkout),
            "NETRC": str(directory / "netrc"),
        }

    def open(self, page: Path) -> None:
        """Begin a page: nothing of another page's variables is known."""
        self._state.write_text(f"cd {self.checkout}\n")

    def run(self, block: Block) -> None:
        """Copy one block, and wait for its end, or for what it says once it is at work."""
        log = self._state.with_name("log")
        keep = f'{{ export -p; echo "cd $PWD"; }} > {self._state}'
        script = f"set -aeuo pipefail\n. {self._state}\n{_typed(block)}\n{keep}\n"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._await(process, block, log)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if block.mark == "":
            assert process.wait() == 0, f"{block}\n{log.read_text()}"

    def _await(self, process: subprocess.Popen[bytes], block: Block, log: Path) -> None:
        deadline_s = time.monotonic() + _BLOCK_S
        while process.poll() is None:
            assert time.monotonic() < deadline_s, f"{block}\n{log.read_text()}"
            if block.mark == "goes on:" and block.said in log.read_text():
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)
                return
            time.sleep(0.1)
        assert block.mark == "", f"it has ended: {block}\n{log.read_text()}"

    def processes(self) -> list[psutil.Process]:
        """Of all runs in the checkout."""
        ours = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUN_MARK, "").startswith(str(self.checkout)):
                    ours.append(process)
            except psutil.Error:
                continue
        return ours


def _typed(block: Block) -> str:
    """What a shell is given, so that Python knows its directory and its variables."""
    if block.language == "python":
        return f"python - <<'PYTHON'\n{block.text}PYTHON"
    return block.text


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    someone = Reader(tmp_path_factory.mktemp("pages"))
    try:
        yield someone
    finally:
        while left := someone.processes():  # they bring each other back
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=1)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_can_be_done(reader: Reader, page: Path) -> None:
    reader.open(page)
    for block in copied_blocks(page):
        if block.mark in ("", "goes on:"):
            reader.run(block)


@pytest.mark.long
def test_wandb_was_told_of_the_run_while_it_was_at_work(reader: Reader) -> None:
    """By the run that docs/tracking.md resumed, offline; see test_tracker.py for what is told."""
    (path,) = (reader.checkout / "runs" / "catch" / "wandb").glob("offline-run-*/run-*.wandb")
    deadline_s = time.monotonic() + _BLOCK_S
    while len(rows := history(path)) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert found(path, "run")[0].run_group == "catch"
    assert len(rows) > 1 and rows[-1]["progress/env_frames"] > 0
