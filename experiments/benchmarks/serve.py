"""The serving end of a side: a process that does its work for some seconds whenever it is asked.

Runs in every side's own environment, ours and the peers', so it needs nothing but Python.
Invariant: one JSON object per line each way, on the process's first standard output; whatever
libraries print goes to standard error. Between two questions a side only waits.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Kept for answers alone, from the moment of this import.
_CHANNEL = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

Work = Callable[[], float]
"""Does one small piece of work; returns how many units that were."""


def arguments() -> dict[str, Any]:
    """Return what the benchmark asks of this side: the JSON object on its command line."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def serve(
    work: Work,
    packages: tuple[str, ...],
    facts: Callable[[], dict[str, Any]] | None = None,
    work_for: Callable[[float], float] | None = None,
    limit: Work | None = None,
) -> None:
    """Answer the benchmark until it closes our standard input.

    Args:
      work: one piece of work, repeated until the time is over.
      packages: distributions whose versions are reported.
      facts: called when asked for facts, such as memory or what a correctness check needs.
      work_for: takes seconds and returns units, for work that cannot be cut into pieces.
      limit: one piece of the limit's work, where the limit needs what this process holds.
    """
    _answer({"ready": True, "versions": _versions(packages)})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "facts":
            _answer(facts() if facts else {})
            continue
        start_s = time.perf_counter()
        piece = limit if asked["do"] == "limit" and limit else work
        if work_for is not None and piece is work:
            amount = work_for(asked["seconds"])
        else:
            amount = 0.0
            while time.perf_counter() < start_s + asked["seconds"]:
                amount += piece()
        _answer({"amount": amount, "wall_s": time.perf_counter() - start_s})


def _answer(message: dict[str, Any]) -> None:
    _CHANNEL.write(json.dumps(message) + "\n")
    _CHANNEL.flush()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
