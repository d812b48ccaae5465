"""What one call of the suite measures: shared by all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from results import Row


@dataclass
class Plan:
    """What to measure, and with what."""

    quick: bool
    """Fewer settings and shorter turns: all of B1 to B5 in under ten minutes."""
    scratch: Path
    """A directory for tapes, runs and logs; gone afterwards."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers whose environment could not be made, and why."""
    cleanrl: Path | None = None
    """Checkout of CleanRL's repository; None: not given, and reported so."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of everything that was measured; rows add theirs as `peer's package`."""

    def add_versions(self, peer: str, versions: dict[str, str]) -> None:
        """Remember what a side reported of itself."""
        self.versions |= {f"{peer}: {package}": version for package, version in versions.items()}


Measure = Callable[[Plan], list[Row]]
"""What each row's module offers as `measure`."""
