"""Where actors run: files and blocks beside the keeper, environments anywhere.

Invariant: whoever reads or writes the run directory, learns, or holds replay's blocks, is on the
keeper's host. So no other host has to see that directory, and no other host's death takes
experience: only rollouts, which keep nothing, go elsewhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rl_cluster.cluster.actors import Actor
from rl_cluster.cluster.gcs import SOON_S, GcsSilent, Node, has_no_place, live_nodes
from rl_cluster.config import ClusterConfig
from rl_cluster.supervision.spread import emptiest, task_of, to_be_moved

_log = logging.getLogger(__name__)
T = TypeVar("T")
_SHARE = 0.001
"""Of a host's resource, which is 1.0 in all."""
_A_BYTE = 1
"""Of a node's memory, as Ray counts it: an actor that asks for nothing goes to a node at random,
whatever node it is softly bound to (Ray's `ClusterResourceScheduler::GetBestSchedulableNode`)."""
_SILENCE_S = 5.0
"""Between two questions to a control store that says nothing: one a tick would hold it up."""
MOVE_PERIOD_S = 10.0
"""Between two moves: as long as a rollout takes to be made on a busy node."""


def home_resource() -> str:
    """The resource that Ray gives this host's nodes for their address.

    Not a node's id: a node that died comes back under another id, and Ray gives an actor up whose
    node's id is gone, but waits for a resource.
    """
    own_address: Any = get_node_ip_address
    return f"node:{own_address()}"


def at_home() -> dict[str, Any]:
    """Options of an actor on this host, where the supervisor is."""
    return {"resources": {home_resource(): _SHARE}}


class Places:
    """Which nodes a run's rollouts go to, and who waits for one.

    What each reserves, Ray counts and spreads. Where they reserve nothing, Ray's own choice is as
    good as random, so the node with the fewest of them per core is taken; and since nodes come
    later than a run, or come back, one rollout after the other is moved to where there are fewer.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._labels, self._wanted = dict(config.rollout_labels), dict(config.rollout_resources)
        self._one_node = config.address == "local"
        self._node_of: dict[str, str] = {}
        self._looked_s = 0.0
        self._ask_again_s = -math.inf

    def options(self, name: str) -> dict[str, Any]:
        """Options of a rollout that is about to be made."""
        self._node_of.pop(name, None)
        if self._wanted or not (nodes := self._nodes()):
            return self._by_ray()
        node = emptiest(nodes, self._node_of, task_of(name))
        self._node_of[name] = node
        bound = NodeAffinitySchedulingStrategy(node, soft=True)
        return {"scheduling_strategy": bound, "memory": _A_BYTE, "label_selector": self._labels}

    def misplaced(self, rollouts: Mapping[str, str | None], now_s: float) -> str | None:
        """A rollout to be made anew, since another node has fewer per core; now and then one.

        Args:
          rollouts: all that there are, by name: the node that each says it is on, if it does.
          now_s: the supervisor's watch.
        """
        if self._one_node or self._wanted or now_s - self._looked_s < MOVE_PERIOD_S:
            return None
        self._looked_s = now_s
        placed = {name: node or self._node_of.get(name) for name, node in rollouts.items()}
        self._node_of = {name: node for name, node in placed.items() if node is not None}
        return to_be_moved(self._nodes(), self._node_of)

    def _by_ray(self) -> dict[str, Any]:
        wanted = dict(self._wanted)
        memory = {"memory": int(wanted.pop("memory"))} if "memory" in wanted else {}
        return memory | {
            "scheduling_strategy": "SPREAD",
            "num_cpus": wanted.pop("CPU", 0),
            "resources": wanted,
            "label_selector": self._labels,
        }

    def waits_for(self, actor: Actor) -> bool:
        """Whether an actor has no node yet, and others may bring it one: no failure of its own.

        As long as nobody says, it is not the actor that fails.
        """
        return not self._one_node and self._ask(lambda: has_no_place(actor, SOON_S), True)

    def _nodes(self) -> dict[str, float]:
        """Cores of every node that has the labels; none where nobody says."""
        nobody: list[Node] = []
        return {
            node.node_id: max(1.0, node.resources.get("CPU", 0.0))
            for node in self._ask(lambda: live_nodes(SOON_S), nobody)
            if self._labels.items() <= node.labels.items()
        }

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        """Ask the control store; where it says nothing, nobody asks it for a while."""
        if time.monotonic() < self._ask_again_s:
            return otherwise
        try:
            return question()
        except GcsSilent as error:
            _log.warning("%s", error)
            self._ask_again_s = time.monotonic() + _SILENCE_S
            return otherwise


def node_id() -> str:
    """The node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())
