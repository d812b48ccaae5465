"""For all tests: a property is never held to a time, since machines are busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any time", deadline=None)
settings.load_profile("any time")
