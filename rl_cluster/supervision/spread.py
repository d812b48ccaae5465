"""How rollouts are spread over nodes: by cores; where that leaves a choice, each task over many.

Invariant: a move makes the busier of two nodes less busy than the other was made by it, so moves
come to an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


def task_of(name: str) -> str:
    """What a rollout's name begins with, up to its number: `rollout:Pong` of `rollout:Pong/3`."""
    return name.rpartition("/")[0]


def emptiest(nodes: Mapping[str, float], node_of: Mapping[str, str], task: str) -> str:
    """The node for one more rollout of a task.

    Args:
      nodes: cores of each, one at least.
      node_of: where the other rollouts are, by name.
      task: as `task_of` gives it.
    """
    taken, own = Counter(node_of.values()), _on_nodes(node_of, task)
    return min(nodes, key=lambda node: ((taken[node] + 1) / nodes[node], own[node]))


def to_be_moved(nodes: Mapping[str, float], node_of: Mapping[str, str]) -> str | None:
    """A rollout whose move to the emptiest node evens things out; None where none does."""
    taken = Counter(node_of.values())
    if not (used := [node for node in nodes if taken[node]]):
        return None
    busiest = max(used, key=lambda node: taken[node] / nodes[node])
    target = min(nodes, key=lambda node: (taken[node] + 1) / nodes[node])
    if taken[busiest] / nodes[busiest] <= (taken[target] + 1) / nodes[target]:
        return None

    def unevenness(name: str) -> int:
        own = _on_nodes(node_of, task_of(name))
        return own[busiest] - own[target]

    return max(_names_on(node_of, busiest), key=lambda name: (unevenness(name), name))


def _on_nodes(node_of: Mapping[str, str], task: str) -> Counter[str]:
    return Counter(node for name, node in node_of.items() if task_of(name) == task)


def _names_on(node_of: Mapping[str, str], node: str) -> Iterable[str]:
    return (name for name, on in node_of.items() if on == node)
