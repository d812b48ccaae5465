"""How a command ends: its exit code, and the one line that says why.

Invariant: complaints go to standard error, so that standard output holds what was asked for.
"""

from __future__ import annotations

import sys

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def complain(message: str, code: int) -> int:
    """Say what went wrong; return the exit code."""
    print(f"rl-cluster: {message}", file=sys.stderr)
    return code
