"""Shell of the weight store: rollouts wait here, asynchronously, for newer versions.

Invariant: the actor holds references only; the vectors lie in the object store, put there once a
version by the learner. If it dies it comes back empty, and the next publication fills it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Ref
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.supervision.health import Health
from rl_cluster.weights import PublishedWeights, WeightStore


class WeightsActor:
    """Newest weights of every task of a run."""

    def __init__(self) -> None:
        self._vitals = Vitals(epoch=0, phase="waiting")
        self._store: WeightStore[list[Ref]] = WeightStore()
        self._published: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @once_made
    def __repr__(self) -> str:
        """Name, state and the newest policy of every task."""
        newest = [f"{task} {version}" for task, version in self._store.versions().items()]
        return self._vitals.line(names.WEIGHTS, *newest)

    async def health(self) -> Health:
        """Say that it lives."""
        return self._vitals.report()

    async def publish(self, task: str, epoch: int, version: int, payload: list[Ref]) -> bool:
        """Take a publication; `payload` holds one reference, in a list so that Ray passes it on."""
        kept = self._store.publish(task, epoch, version, payload)
        if kept:
            self._vitals.progress()
            self._published.pop(task, asyncio.Event()).set()
        return kept

    async def version(self, task: str) -> int:
        """Newest version of a task, -1 where there is none."""
        return self._store.version(task)

    async def next_after(self, task: str, version: int) -> PublishedWeights[list[Ref]]:
        """Wait for a version above `version` and return the newest."""
        while (newer := self._store.newer_than(task, version)) is None:
            await self._published[task].wait()
        return newer
