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


def keep_fresh(name: str, first_s: float, refresh: Callable[[], float | None]) -> threading.Thread:
    """Draw something anew again and again, until another of the same name comes.

    Args:
      name: what is drawn.
      first_s: seconds until it is drawn anew for the first time.
      refresh: draws it; returns the seconds until the next time, None: that was the last.
    """
    if name in _ends:
        _ends[name].set()
    end = _ends[name] = threading.Event()
    thread = threading.Thread(target=_repeat, args=(end, first_s, refresh), name=name, daemon=True)
    thread.start()
    return thread


def _repeat(end: threading.Event, first_s: float, refresh: Callable[[], float | None]) -> None:
    wait_s: float | None = first_s
    while wait_s is not None and not end.wait(wait_s):
        try:
            wait_s = refresh()
        except Exception:  # noqa: BLE001  (a thread's boundary: what is shown stays as it is)
            _log.warning("what is shown is not drawn anew any more", exc_info=True)
            return
