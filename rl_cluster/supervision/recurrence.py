"""Which of a worker's incidents are news: a trouble that lasts is not told at each of its signs.

Invariant: a trouble is told when it begins, again at growing intervals while it lasts, and when it
is over; one that comes and goes is told no more often. So its lines grow with the logarithm of
time, and with the number of its natures, until one in the longest interval.
"""

from __future__ import annotations

from rl_cluster.supervision.spacing import Spacing

_INTERVAL_S = 60.0
_LONGEST_INTERVAL_S = 6 * 3_600.0
_CALM_S = 24 * 3_600.0

_ENDS = {"checkpoint_resumed": "checkpoint_failed", "batches_finite": "batch_skipped"}
"""Kinds of incidents that end a trouble, and its kind; all others are always news."""
_TROUBLES = frozenset({*_ENDS.values(), "worker_waits"})


class Recurrence:
    """What was told of every worker's troubles; it outlives the workers."""

    def __init__(self) -> None:
        self._spacings: dict[tuple[str, str, str], Spacing] = {}
        self._told: set[tuple[str, str]] = set()

    def is_news(self, worker: str, kind: str, nature: str, now_s: float) -> bool:
        """Take in a sign, and say whether it is worth an incident.

        Args:
          worker: its name. kind: of the incident.
          nature: what tells one cause from another; there must be few. Another one is news.
          now_s: the supervisor's watch.
        """
        if kind in _ENDS:
            trouble = worker, _ENDS[kind]
            was_told = trouble in self._told
            self._told.discard(trouble)
            return was_told
        return kind not in _TROUBLES or self._is_due(worker, kind, nature, now_s)

    def _is_due(self, worker: str, kind: str, nature: str, now_s: float) -> bool:
        new = Spacing(_INTERVAL_S, _LONGEST_INTERVAL_S, _CALM_S)
        spacing = self._spacings.setdefault((worker, kind, nature), new)
        if spacing.wait_s(now_s) > 0:
            return False
        spacing.done(now_s)
        self._told.add((worker, kind))
        return True
