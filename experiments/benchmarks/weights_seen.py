"""How weights arrived, kept alike by every side of the weights row.

Invariant: needs Python and numpy only, as it runs in all environments. Times are of the monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

GAP_S = 0.25
"""Between two publications: long enough for the one before to arrive."""

Publication = Callable[[int], tuple[float, list[float]]]
"""Publishes new weights to the first so many receivers; returns the seconds that the publisher's
thread was busy, and for each receiver those until it acted with them."""


class Arrivals:
    """What the newest turn measured, for each number of receivers."""

    def __init__(self, counts: Iterable[int]) -> None:
        self.counts = tuple(counts)
        self._latencies_ms: dict[int, list[float]] = {}
        self._own_ms: dict[int, list[float]] = {}

    def start_turn(self) -> None:
        """Forget the turn before."""
        self._latencies_ms = {count: [] for count in self.counts}
        self._own_ms = {count: [] for count in self.counts}

    def add(self, count: int, own_s: float, latencies_s: Iterable[float]) -> None:
        """Hear of one publication to `count` receivers."""
        self._own_ms[count].append(1e3 * own_s)
        self._latencies_ms[count] += [1e3 * latency_s for latency_s in latencies_s]

    def facts(self) -> dict[str, Any]:
        """The turn's milliseconds by number of receivers."""
        return {"latencies_ms": self._latencies_ms, "own_ms": self._own_ms}


def publications_in(seconds: float) -> int:
    """How many publications a turn makes to each number of receivers."""
    return max(1, round(seconds / GAP_S))


def turn(arrivals: Arrivals, publish: Publication, seconds: float) -> float:
    """Publish one after another, each when the one before has arrived; return how many."""
    arrivals.start_turn()
    count_each = publications_in(seconds)
    for count in arrivals.counts:
        for _ in range(count_each):
            time.sleep(GAP_S)
            arrivals.add(count, *publish(count))
    return float(count_each * len(arrivals.counts))


def digest(arrays: Iterable[np.ndarray]) -> int:
    """Checksum of arrays, to see that what arrived is what was sent."""
    found = 0
    for array in arrays:
        found = zlib.crc32(array.tobytes(), found)
    return found
