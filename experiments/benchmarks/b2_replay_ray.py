"""B2: the work of B1 from another process, through Ray; the limit is the gather alone.

Each side is a driver in the learner's place with a Ray cluster of its own: ours with the real
replay actor and client, a peer's with its replay of B1 inside a plain actor. Invariant: what the
driver receives was held against the tape before anything was timed (B1 has checked the draws).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from peers import OURS, python_of
from plan import Plan
from results import Row, compare, missing, pairs
from sides import START_TIMEOUT_S, BenchmarkError, ServedSide, Watch, Window
from tape import recorded

ROW = "B2 replay through Ray"
UNIT = "iterations"
CAPACITY, QUICK_CAPACITY = 200_000, 20_000


class Peer(NamedTuple):
    """A peer of this row."""

    environment: str
    distribution: str
    remark: str


PEERS = (
    Peer("cpprb", "cpprb", " in an actor"),
    Peer("tianshou", "tianshou", " in an actor"),
    Peer("torchrl", "torchrl", " in an actor"),
    Peer("rllib", "ray", " (RLlib) in an actor"),
)


class GatherAlone:
    """The limit as a side: our learner's process gathers, and nothing else happens."""

    def __init__(self, us: ServedSide) -> None:
        self._us = us

    def turn(self, seconds: float) -> Window:
        """Gather for so long."""
        watch = Watch(self._us.tree)
        asked = {"do": "limit", "seconds": seconds}
        done = self._us.ask(asked, 10 * seconds + START_TIMEOUT_S)
        return watch.window(done["amount"], done["wall_s"])


def measure(plan: Plan) -> list[Row]:
    """Measure us beside the limit and every peer."""
    capacity = QUICK_CAPACITY if plan.quick else CAPACITY
    asked = {"tape": str(recorded(plan.scratch)), "capacity": capacity}
    setting = f"through Ray, 64 in, 512 out, 512 updated; Pong, n = 3, capacity {capacity:,}"
    with ServedSide(OURS, "ours/replay_ray.py", asked) as us:
        plan.add_versions("rl-cluster", us.versions)
        us.facts()
        against_limit = pairs(us, GatherAlone(us), *_turns(plan))
        rows = [
            row for peer in PEERS for row in _rows(plan, setting, peer, us, asked, against_limit)
        ]
    return [*rows, _reverb(plan, setting)]


def _rows(
    plan: Plan,
    setting: str,
    peer: Peer,
    us: ServedSide,
    asked: Mapping[str, Any],
    against_limit: list[tuple[Window, Window]],
) -> list[Row]:
    """Rows of one peer, or one that says why not."""
    if peer.environment in plan.missing:
        return [missing(ROW, setting, UNIT, peer.environment, plan.missing[peer.environment])]
    wanted = {**asked, "peer": peer.environment, "distribution": peer.distribution}
    try:
        with ServedSide(python_of(peer.environment), "peers/replay_in_actor.py", wanted) as side:
            name = f"{peer.distribution} {side.versions[peer.distribution]}{peer.remark}"
            plan.add_versions(name, side.versions)
            theirs = side.facts()
            turns = pairs(us, side, *_turns(plan))
    except BenchmarkError as why:
        return [missing(ROW, setting, UNIT, peer.environment, str(why))]
    speed = compare(ROW, setting, UNIT, name, turns, against_limit)
    note = f"{theirs['differs']} ({theirs['differing']:.2%} of samples in the check)"
    return [replace(row, note=note) for row in speed]


def _turns(plan: Plan) -> tuple[float, int]:
    """Seconds of a turn, and rounds."""
    return (1.0, 2) if plan.quick else (5.0, 4)


def _reverb(plan: Plan, setting: str) -> Row:
    """Row of Reverb, whose Python module wants TensorFlow."""
    if "reverb" in plan.missing:
        return missing(ROW, setting, UNIT, "dm-reverb", plan.missing["reverb"])
    command = [str(python_of("reverb")), "-c", "import reverb"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
    )
    why = done.stderr if done.returncode else "it imports, but no side is written for it"
    return missing(ROW, setting, UNIT, "dm-reverb", why)
