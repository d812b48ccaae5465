"""Rollouts over nodes: even by cores, each task on many, and moves that come to an end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.supervision.spread import emptiest, task_of, to_be_moved

NODES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 64).map(float), min_size=1)
NAMES = st.builds(lambda task, i: f"rollout:{task}/{i}", st.sampled_from("PQ"), st.integers(0, 12))


def loads(nodes: dict[str, float], node_of: dict[str, str]) -> list[float]:
    taken = Counter(node_of.values())
    return [taken[node] / cores for node, cores in nodes.items()]


def test_two_games_that_began_on_one_node_are_both_on_two_in_the_end() -> None:
    nodes = {"head": 2.0, "worker": 2.0}
    node_of = dict.fromkeys(("rollout:P/0", "rollout:P/1", "rollout:Q/0", "rollout:Q/1"), "head")
    while name := to_be_moved(nodes, node_of):
        node_of[name] = emptiest(
            nodes, {n: o for n, o in node_of.items() if n != name}, task_of(name)
        )
    by_task = {task: {node_of[f"rollout:{task}/{i}"] for i in (0, 1)} for task in "PQ"}
    assert by_task == {"P": {"head", "worker"}, "Q": {"head", "worker"}}


@given(NODES, st.sets(NAMES, min_size=1), st.data())
def test_moves_end_and_leave_no_move_that_would_help(
    nodes: dict[str, float], names: set[str], data: st.DataObject
) -> None:
    node_of = {name: data.draw(st.sampled_from(sorted(nodes))) for name in sorted(names)}
    for _ in range(len(names) * len(nodes) + 1):
        if (name := to_be_moved(nodes, node_of)) is None:
            break
        others = {other: node for other, node in node_of.items() if other != name}
        before = max(loads(nodes, node_of))
        node_of[name] = emptiest(nodes, others, task_of(name))
        assert max(loads(nodes, node_of)) <= before
    assert to_be_moved(nodes, node_of) is None
    taken = Counter(node_of.values())
    worst = max(loads(nodes, node_of))
    assert all((taken[node] + 1) / cores >= worst for node, cores in nodes.items())


@given(NODES, st.sets(NAMES))
def test_made_one_after_the_other_they_need_no_move(
    nodes: dict[str, float], names: set[str]
) -> None:
    node_of: dict[str, str] = {}
    for name in sorted(names):
        node_of[name] = emptiest(nodes, node_of, task_of(name))
    assert to_be_moved(nodes, node_of) is None


def test_rollouts_on_nodes_that_are_gone_are_left_to_their_deadlines() -> None:
    assert to_be_moved({"head": 2.0}, {"rollout:P/0": "gone"}) is None
    assert to_be_moved({}, {"rollout:P/0": "gone"}) is None
