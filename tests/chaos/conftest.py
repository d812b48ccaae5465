"""What every row of the fault suite needs."""

from __future__ import annotations

import random
import zlib

import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random moments that are the same in every execution of a test."""
    return random.Random(zlib.crc32(request.node.name.encode()))
