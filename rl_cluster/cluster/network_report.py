"""What crosses the network for a task: a part of the summary, from what replay counted."""

from __future__ import annotations

from rl_cluster.cluster.rates import Rate
from rl_cluster.cluster.task_group import TaskGroup
from rl_cluster.telemetry.summary import Network


class NetworkReport:
    """Rates of what replay's node receives from others and sends to them."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._blocks, self._unpacked, self._weights = Rate(), Rate(), Rate()

    def refresh(self, now_s: float) -> None:
        """Read the newest counters."""
        replay = self._group.replay_status
        if replay is None:
            for rate in (self._blocks, self._unpacked, self._weights):
                rate.hold(now_s)
            return
        self._blocks.add(now_s, replay.network.block_bytes)
        self._unpacked.add(now_s, replay.network.unpacked_bytes)
        self._weights.add(now_s, replay.network.weights_bytes)

    def summary(self) -> Network:
        """Rates, and how many nodes the task's workers are on."""
        return {
            "nodes": len(self._nodes()),
            "block_bytes_per_s": self._blocks.per_second,
            "unpacked_bytes_per_s": self._unpacked.per_second,
            "weights_bytes_per_s": self._weights.per_second,
        }

    def metrics(self) -> dict[str, float | None]:
        """The same in the task's row of metrics."""
        network = self.summary()
        return {
            "nodes": network["nodes"],
            "network_block_bytes_per_s": network["block_bytes_per_s"],
            "network_unpacked_bytes_per_s": network["unpacked_bytes_per_s"],
            "network_weights_bytes_per_s": network["weights_bytes_per_s"],
        }

    def _nodes(self) -> set[str]:
        healths = (worker.health for worker in self._group.workers())
        return {health.node_id for health in healths if health is not None}
