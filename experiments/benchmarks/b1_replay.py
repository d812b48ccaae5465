"""B1: replay in one process. One iteration inserts 64 transitions, samples 512, updates 512.

Every side is a process that has filled its replay from the same tape (see `tape`, `replay_side`).
Invariant: nothing is timed before its transitions and its distribution were found right; ours must
be exact, a peer may differ where its script says that its design does, and its row repeats that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from peers import OURS, python_of
from plan import Plan
from results import Row, compare, missing, pairs
from sides import BenchmarkError, ServedSide, Window
from tape import recorded

ROW = "B1 replay"
BYTES_ROW = "B1 bytes per transition"
UNIT = "iterations"
CAPACITY, QUICK_CAPACITY = 200_000, 20_000


class Peer(NamedTuple):
    """A peer of this row."""

    environment: str
    distribution: str
    remark: str = ""


PEERS = (
    Peer("torchrl", "torchrl"),
    Peer("cpprb", "cpprb"),
    Peer("tianshou", "tianshou"),
    Peer("rllib", "ray", " (RLlib)"),
    Peer("sb3", "stable-baselines3", " (uniform, no update)"),
)


def measure(plan: Plan) -> list[Row]:
    """Measure us beside the limit and every peer."""
    capacity = QUICK_CAPACITY if plan.quick else CAPACITY
    asked = {"tape": str(recorded(plan.scratch)), "capacity": capacity}
    setting = f"in process, 64 in, 512 out, 512 updated; Pong, n = 3, capacity {capacity:,}"
    with ServedSide(OURS, "ours/replay.py", asked) as us:
        plan.add_versions("rl-cluster", us.versions)
        facts = us.facts()
        with ServedSide(OURS, "ours/replay_memcpy.py", {}) as limit:
            against_limit = _turns(plan, us, limit)
        return [
            row
            for peer in PEERS
            for row in _rows(plan, setting, peer, us, facts, asked, against_limit)
        ]


def _rows(
    plan: Plan,
    setting: str,
    peer: Peer,
    us: ServedSide,
    facts: Mapping[str, Any],
    asked: Mapping[str, Any],
    against_limit: list[tuple[Window, Window]],
) -> list[Row]:
    """Rows of one peer: two of speed and one of memory, or one that says why not."""
    if peer.environment in plan.missing:
        return [missing(ROW, setting, UNIT, peer.environment, plan.missing[peer.environment])]
    script = f"peers/replay_{peer.environment}.py"
    try:
        with ServedSide(python_of(peer.environment), script, asked) as side:
            name = f"{peer.distribution} {side.versions[peer.distribution]}{peer.remark}"
            plan.add_versions(name, side.versions)
            theirs = side.facts()
            turns = _turns(plan, us, side)
    except BenchmarkError as why:
        return [missing(ROW, setting, UNIT, peer.environment, str(why))]
    speed = compare(ROW, setting, UNIT, name, turns, against_limit)
    noted = [replace(row, note=_note(theirs)) for row in speed]
    return [*noted, _bytes_row(setting, name, facts, theirs)]


def _turns(plan: Plan, us: ServedSide, other: ServedSide) -> list[tuple[Window, Window]]:
    return pairs(us, other, 1.0 if plan.quick else 5.0, 2 if plan.quick else 4)


def _note(theirs: Mapping[str, Any]) -> str:
    if not theirs["differs"]:
        return ""
    return f"{theirs['differs']} ({theirs['differing']:.2%} of samples in the check)"


def _bytes_row(setting: str, name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
    us, peer = ours["bytes_per_transition"], theirs["bytes_per_transition"]
    raw = {"ours": dict(ours), "theirs": dict(theirs)}
    return Row(BYTES_ROW, setting, "bytes/transition", us, name, peer, peer / us, raw=raw)
