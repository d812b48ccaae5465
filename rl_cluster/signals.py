"""SIGINT and SIGTERM as a flag that the driver looks at.

Invariant: from installation on, a signal never interrupts what is under way; it is answered at the
next look, so that everything is saved. A second signal changes nothing: the first is being obeyed.
SIGHUP, which a closing terminal sends, is ignored: a run does not belong to its terminal.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopFlag:
    """Set by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def install(self) -> None:
        """Take over both signals; again after a library has taken them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the flag is set or the time is over; return whether it is set."""
        return self._event.wait(timeout_s)

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self._event.is_set()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()
