"""SIGINT and SIGTERM as a flag that the driver looks at.

Invariant: from `install` on, a signal never interrupts what is under way; it waits, blocked in
every thread, until the next look, so that everything is saved, and whatever handlers a library
installs meanwhile are never called. A second signal changes nothing: the first is being obeyed.
SIGHUP, which a closing terminal sends, is ignored: a run does not belong to its terminal.
"""

from __future__ import annotations

import signal

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        """Which of them came first."""

    def install(self) -> None:
        """Let both signals wait; before the program has threads, which inherit this."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a signal comes or the time is over; return whether one has come."""
        if self.came is None:
            came = signal.sigtimedwait(_STOP_SIGNALS, timeout_s)
            # A process that was stopped (Ctrl-Z) and goes on gets a record that nobody filled in.
            if came is not None and came.si_signo in _STOP_SIGNALS:
                self.came = signal.Signals(came.si_signo)
        return self.came is not None

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self.wait(0.0)


def let_through() -> None:
    """In a new process, which inherits the waiting: let SIGTERM end it again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
