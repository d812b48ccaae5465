"""What people asked of a run beyond its configuration: the desired state, as plain records.

Invariant: a wish is whole and valid before it is kept, it outlives every process of the run, and
none is ever kept twice: what is asked again replaces what was asked before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter


@dataclass
class Wishes:
    """Everything that was asked for, by task."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    tier: str
    paused: set[str] = field(default_factory=set)
    parked: dict[str, str] = field(default_factory=dict)
    """Tasks that were given up, and why."""
    given_up: set[str] = field(default_factory=set)
    """Workers that their task does without."""
    removed: set[str] = field(default_factory=set)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tasks that came while the run was live, as mappings of settings."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task to live settings, by dotted name."""

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        record = asdict(self)
        return {k: sorted(v) if isinstance(v, set) else v for k, v in record.items()}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Wishes:
        """The wishes that `to_record` wrote.

        Raises:
          ValueError: a field is missing, unknown or of the wrong type.
        """
        return _WISHES.validate_python(dict(record))

    def try_again(self, task: str) -> None:
        """Forget that a task, or a worker of it, was given up."""
        self.parked.pop(task, None)
        self.given_up = {name for name in self.given_up if name.partition(":")[2] != task}

    def try_all_again(self) -> None:
        """Forget that anything was given up: a new session tries it again."""
        self.parked, self.given_up = {}, set()


_WISHES = TypeAdapter(Wishes)
