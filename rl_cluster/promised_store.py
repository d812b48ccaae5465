"""How much object store a run's tasks may fill, as its session says.

Invariant: a cluster that is made has so much; on one of others the run claims it there. It only
grows once a session's supervisor is at work.
"""

from __future__ import annotations

from rl_cluster.control import Control


def promised_bytes(control: Control) -> int:
    """Object store that the tasks of a session may fill; 0 where there is none."""
    session = control.read("session")
    return int(session["object_store_bytes"]) if session else 0


def promise(control: Control, more_bytes: int) -> None:
    """Let tasks fill so much more, in a cluster that is made from now on, or has the room."""
    session = control.read("session") or {}
    wanted = promised_bytes(control) + more_bytes
    control.write("session", session | {"object_store_bytes": wanted})
