"""What is drawn anew while a notebook is open.

Invariant: one thread for each thing shown: a cell that is run again replaces its earlier one, so
that a long session costs no more than what is on its screen. The threads die with the kernel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)
_ends: dict[str, threading.Event] = {}


def refresh_every(name: str, period_s: float, refresh: Callable[[], bool]) -> threading.Thread:
    """Call `refresh` until it returns False, or until another of the same name comes."""
    if name in _ends:
        _ends[name].set()
    end = _ends[name] = threading.Event()
    thread = threading.Thread(target=_repeat, args=(end, period_s, refresh), name=name, daemon=True)
    thread.start()
    return thread


def _repeat(end: threading.Event, period_s: float, refresh: Callable[[], bool]) -> None:
    while not end.wait(period_s):
        try:
            if not refresh():
                return
        except Exception:  # noqa: BLE001  (a thread's boundary: what is shown stays as it is)
            _log.warning("what is shown is not drawn anew any more", exc_info=True)
            return
