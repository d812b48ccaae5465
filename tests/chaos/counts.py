"""How often each fault is injected: all of it with RL_CLUSTER_CHAOS=full, else a part.

`make chaos` asks for all, `make test` for the part: the same tests, with other numbers.
"""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

FULL = os.environ.get("RL_CLUSTER_CHAOS") == "full"

_Count = TypeVar("_Count")


def count(full: _Count, part: _Count) -> _Count:
    """`full` in `make chaos`, `part` in `make test`."""
    return full if FULL else part


def only_in_full(why: str) -> pytest.MarkDecorator:
    """For a row that cannot be short."""
    return pytest.mark.skipif(not FULL, reason=f"{why}: `make chaos` has it")
