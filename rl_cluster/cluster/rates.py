"""Rates from counters that are read now and then."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 10.0


class Rate:
    """Growth per second of a counter over the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        """Note the counter."""
        if self._points and value < self._points[-1][1]:
            self._points.clear()
        self._points.append((now_s, value))
        while self._points[0][0] < now_s - _WINDOW_S:
            self._points.popleft()

    def hold(self, now_s: float) -> None:
        """Note that nobody counts now: the counter stands still."""
        if self._points:
            self.add(now_s, self._points[-1][1])

    @property
    def per_second(self) -> float:
        """Growth per second; 0 before two readings."""
        if not self._points:
            return 0.0
        (start_s, first), (end_s, last) = self._points[0], self._points[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0
