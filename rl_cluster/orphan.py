"""Processes that are nobody's child: Ray kills the children of a worker that ends, whatever their
session."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def launch_orphan(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Start a program in a session of its own; what it prints is appended to `log`.

    Args:
      command: program and arguments.
      log: made where it is not there.
      environment: None: this process's.
      pass_fds: open files that it keeps.

    Raises:
      OSError: the log cannot be opened.
    """
    with log.open("ab") as output:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=pass_fds,
            start_new_session=True,
        )
