"""How a run is ended from outside: by a file that is asked for, and by force where nobody reads it.

Invariant: nothing here needs more than files and processes, so it is quick, and works on a run that
is starting or stuck.
"""

from __future__ import annotations

import time
from pathlib import Path

from rl_cluster.cluster import runtime
from rl_cluster.control import Control
from rl_cluster.run_directory import RunDirectory, is_in_use, not_running

LOOK_S = 0.3
"""Between two looks at a run's files."""
HEIR_S = 20.0
"""Time for the supervisor to replace a keeper that died."""


def stop_run(run_dir: Path) -> None:
    """Let a run save everything and end; return when it is over; one that is starting, too.

    One whose keeper and supervisor are both gone, or do not get on, is ended as it is.

    Raises:
      RunDirectoryError: it is not running.
    """
    if not is_in_use(run_dir):
        raise not_running(run_dir)
    control = Control(run_dir.absolute())
    control.clear("leave")
    control.request("stop")
    deadline_s = time.monotonic() + HEIR_S
    while is_in_use(run_dir):
        time.sleep(LOOK_S)
        if time.monotonic() > deadline_s:
            runtime.end_processes(run_dir.absolute())
    if control.read("ended") is None:  # whoever keeps runs at the next boot must know
        control.keep("ended", {"state": "interrupted", "reason": "it was ended as it was"})
    RunDirectory(run_dir).mark_ended("interrupted")
    control.clear("stop")
