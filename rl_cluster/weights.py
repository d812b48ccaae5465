"""The newest weights of every task, by policy version.

Invariant: versions only grow; an older or equal one is refused, and so is any of a learner whose
epoch is over: one that came back from the dead cannot roll acting back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class PublishedWeights(Generic[Payload]):
    """One publication: a version and what carries its weights."""

    version: int
    payload: Payload


class WeightStore(Generic[Payload]):
    """Newest publication of each task."""

    def __init__(self) -> None:
        self._newest: dict[str, PublishedWeights[Payload]] = {}
        self._epochs: dict[str, int] = {}

    def publish(self, task: str, epoch: int, version: int, payload: Payload) -> bool:
        """Keep a publication; False where a newer version, or a newer learner, is there already."""
        if version <= self.version(task) or epoch < self._epochs.get(task, 0):
            return False
        self._epochs[task] = epoch
        self._newest[task] = PublishedWeights(version, payload)
        return True

    def version(self, task: str) -> int:
        """Newest version of a task, -1 where there is none."""
        newest = self._newest.get(task)
        return newest.version if newest else -1

    def versions(self) -> dict[str, int]:
        """Newest version of every task that has any."""
        return {task: newest.version for task, newest in self._newest.items()}

    def newer_than(self, task: str, version: int) -> PublishedWeights[Payload] | None:
        """The newest publication, if it is newer than `version`."""
        newest = self._newest.get(task)
        return newest if newest and newest.version > version else None
