"""A simulated field: its server and rovers live as long as it, and are there once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rl_cluster.streams.field import Field

SCRIPT = """
import sys, time
from pathlib import Path
from rl_cluster.streams.field import Field
directory = Path(sys.argv[1])
field = Field(directory / "nats", 0, "envs.rover.process", 2, 30.0, 1, directory / "log",
              time.monotonic)
print(field.url, flush=True)
time.sleep(3600)
"""


@contextmanager
def field_of(directory: Path) -> Iterator[Field]:
    log = directory / "log"
    field = Field(directory / "nats", 0, "envs.rover.process", 2, 30.0, 1, log, time.monotonic)
    try:
        yield field
    finally:
        field.close()


def processes(part: str) -> list[psutil.Process]:
    """Live ones whose command line holds a word."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if part in (process.info["cmdline"] or ()) and process.status() != psutil.STATUS_ZOMBIE
    ]


def seed_of(rover: psutil.Process) -> str:
    argv = rover.cmdline()
    return argv[argv.index("--seed") + 1]


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_what_a_killed_field_left_behind_is_ended_by_the_next_one_at_its_address(
    tmp_path: Path,
) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    url = first.stdout.readline().strip()
    orphans = {process.pid for process in processes(url)}
    assert len(orphans) == 2
    first.kill()
    first.communicate()
    with field_of(tmp_path) as field:
        assert field.url == url and field.driving == 2
        now = {process.pid for process in processes(url)}
        assert len(now) == 2 and not now & orphans
        assert len(processes(str(tmp_path / "nats" / "nats.conf"))) == 1
    assert not processes(url) and not processes(str(tmp_path / "nats" / "nats.conf"))


def test_rovers_and_server_that_die_are_started_again(tmp_path: Path) -> None:
    with field_of(tmp_path) as field:
        url, said = field.url, []
        (server,) = processes(str(tmp_path / "nats" / "nats.conf"))
        seeds = {seed_of(process) for process in processes(url)}
        for process in [server, *processes(url)]:
            process.kill()
        until(lambda: said.extend(field.look()) or field.driving < 2)
        until(lambda: said.extend(field.look()) or field.driving == 2)
        assert field.url == url
        seeds |= {seed_of(process) for process in processes(url)}
        assert len(seeds) == 4, "a rover drives again where one drove before"
        kinds = sorted(each.kind for each in said)
        assert kinds == ["rover_restarted", "rover_restarted", "server_restarted"]
