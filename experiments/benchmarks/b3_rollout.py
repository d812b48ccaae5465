"""B3: environment steps a second while acting with the Nature network, on one core and on two.

All sides play under one protocol (sticky actions, whole games, frame skip 4, stacks of 4 of 84 x 84
grey frames), evaluate the same network in bfloat16 at every step and act at random in 1 % of them.
The limit is the CPU time of a step of bare EnvPool plus that of bare inference, with our sizes.
Invariant: a side's whole process tree is born on the cores of its setting and stays there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from peers import OURS, python_of
from plan import Plan
from results import Row, compare, missing, pairs
from rollout_seen import WARM_UP_BATCHES, why_wrong
from sides import BenchmarkError, ServedSide, Side, Window

ROW = "B3 rollout"
UNIT = "env steps"
GAMES = ("Pong", "Breakout", "MsPacman")
WARM_UP_S = 1.0
_WARM_UPS = 30

OUR_SIZES: Mapping[int, Mapping[str, int]] = {
    1: {"environments": 64, "inference_batch": 32, "env_threads": 1},
    2: {"environments": 64, "inference_batch": 32, "env_threads": 2},
}


@dataclass(frozen=True)
class Peer:
    """A competitor and what is best for it on each number of cores."""

    name: str
    environment: str
    script: str
    package: str
    sizes: Mapping[int, Mapping[str, int]]


PEERS = (
    Peer(
        "RLlib SingleAgentEnvRunner", "rllib", "peers/rollout_rllib.py", "ray",
        {
            1: {"environments": 64, "env_threads": 1, "torch_threads": 1},
            2: {"environments": 64, "env_threads": 2, "torch_threads": 1},
        },
    ),
    Peer(
        "Tianshou Collector, EnvPool", "tianshou", "peers/rollout_tianshou.py", "tianshou",
        {
            1: {"environments": 64, "env_threads": 1, "torch_threads": 1},
            2: {"environments": 64, "env_threads": 2, "torch_threads": 1},
        },
    ),
    Peer(
        "Gymnasium AsyncVectorEnv", "sb3", "peers/rollout_gymnasium.py", "gymnasium",
        {
            1: {"environments": 32, "torch_threads": 1},
            2: {"environments": 32, "torch_threads": 1},
        },
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One game on so many cores, in turns of so many seconds."""

    game: str
    cores: int
    turn_s: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.game}, {self.cores} core{'s' if self.cores > 1 else ''}"


class Limit:
    """Two sides as one: what a step costs at least is what it costs each of them.

    Args:
      env: bare environments.
      inference: the bare network.
      cores: that both run on; with all of them busy, a second has so many CPU seconds.
    """

    def __init__(self, env: Side, inference: Side, cores: int) -> None:
        self._env, self._inference, self._cores = env, inference, cores

    def turn(self, seconds: float) -> Window:
        """Let each work half of the time; the window is that of as many whole steps."""
        env, inference = self._env.turn(seconds / 2), self._inference.turn(seconds / 2)
        cpu_s = env.amount * (1 / env.per_cpu_second + 1 / inference.per_cpu_second)
        others = max(env.others_cores, inference.others_cores)
        return Window(env.amount, cpu_s / self._cores, cpu_s, others)


def measure(plan: Plan) -> list[Row]:
    """Return the rows of every game and number of cores."""
    if plan.quick:
        settings = [Setting("Pong", max(OUR_SIZES), 1.0, 2)]
    else:
        settings = [Setting(game, cores, 4.0, 3) for game in GAMES for cores in OUR_SIZES]
    return [row for setting in settings for row in _measure(plan, setting)]


def _measure(plan: Plan, setting: Setting) -> list[Row]:
    sizes = OUR_SIZES[setting.cores]
    rows: list[Row] = []
    with ExitStack() as stack, _only(setting.cores):
        us = stack.enter_context(_ours("ours/rollout.py", setting, sizes))
        bare = [
            stack.enter_context(_ours("ours/rollout_limit.py", setting, {**sizes, "kind": kind}))
            for kind in ("env", "inference")
        ]
        facts = _warm_facts(us, sizes["environments"])
        if wrong := why_wrong(facts, facts):
            raise BenchmarkError(f"{ROW}, ours: {wrong}")
        plan.add_versions("ours", us.versions)
        limit = Limit(bare[0], bare[1], setting.cores)
        limit.turn(WARM_UP_S)
        against_limit = pairs(us, limit, setting.turn_s, setting.rounds)
        for peer in PEERS:
            rows += _beside(plan, setting, peer, us, facts, against_limit)
    return rows


def _ours(script: str, setting: Setting, asked: Mapping[str, Any]) -> ServedSide:
    return ServedSide(OURS, script, {"game": setting.game, **asked})


def _beside(
    plan: Plan,
    setting: Setting,
    peer: Peer,
    us: ServedSide,
    facts: dict[str, Any],
    against_limit: list[tuple[Window, Window]],
) -> list[Row]:
    if why := plan.missing.get(peer.environment):
        return [missing(ROW, str(setting), UNIT, peer.name, why)]
    sizes = peer.sizes[setting.cores]
    asked = {"game": setting.game, **sizes}
    try:
        with ServedSide(python_of(peer.environment), peer.script, asked) as side:
            if wrong := why_wrong(_warm_facts(side, sizes["environments"]), facts):
                return [missing(ROW, str(setting), UNIT, peer.name, wrong)]
            plan.add_versions(peer.environment, side.versions)
            name = f"{peer.name} {side.versions[peer.package]}"
            against_peer = pairs(us, side, setting.turn_s, setting.rounds)
            return compare(ROW, str(setting), UNIT, name, against_peer, against_limit)
    except BenchmarkError as error:
        return [missing(ROW, str(setting), UNIT, peer.name, str(error))]


def _warm_facts(side: ServedSide, environments: int) -> dict[str, Any]:
    """Let a side work until it has what is checked, and ask for it."""
    steps = 0.0
    for _ in range(_WARM_UPS):
        steps += side.turn(WARM_UP_S).amount
        if steps > 2 * WARM_UP_BATCHES * environments:
            break
    return side.facts()


@contextlib.contextmanager
def _only(cores: int) -> Iterator[None]:
    """Start whatever is started meanwhile on the first so many cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)
