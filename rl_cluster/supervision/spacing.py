"""How far apart things are done that may be asked for again and again: a pure rule.

Invariant: the first is done at once, and however often it is asked for, one in each longest gap is
the most that is done in the long run.
"""

from __future__ import annotations


class Spacing:
    """Puts off what comes too soon after the time before.

    Args:
      gap_s: from the first time to the second; doubled each time.
      longest_gap_s: it grows no further.
      calm_s: after so long without any, the next counts as the first.
    """

    def __init__(self, gap_s: float, longest_gap_s: float, calm_s: float) -> None:
        self._first_gap_s, self._longest_gap_s, self._calm_s = gap_s, longest_gap_s, calm_s
        self._gap_s = gap_s
        self._last_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Seconds until it may be done; 0 where it may be now."""
        if self._last_s is None:
            return 0.0
        return max(0.0, self._last_s + self._gap_s - now_s)

    def done(self, now_s: float) -> None:
        """It was done."""
        calm = self._last_s is None or now_s - self._last_s > self._calm_s
        self._gap_s = self._first_gap_s if calm else min(2 * self._gap_s, self._longest_gap_s)
        self._last_s = now_s
