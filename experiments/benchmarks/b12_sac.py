"""B12: updates of soft actor-critic a second, ours beside CleanRL's on the same networks and batch.

One thread each, float32, 64 transitions of two bird's-eye views, which already lie in memory. The
limit is the trunk's passes alone. Invariant: all start from the same parameters, and the critics'
loss of the first update is the same; from then on they differ by design (CleanRL moves the critics
before it takes the policy's gradient).
"""

from __future__ import annotations

from peers import OURS
from plan import Plan
from results import Row, compare, pairs
from sac_seen import BATCH, SHAPES
from sides import START_TIMEOUT_S, BenchmarkError, ServedSide, Watch, Window

ROW = "B12 SAC"
UNIT = "updates"
FORMS = {
    "separate": "CleanRL's update, a trunk in each network",
    "shared": "CleanRL's update, the critics' trunk for all",
}
_TOLERANCE = 1e-4


class TrunkAlone:
    """The limit as a side: our process sends batches through the trunk, and nothing else."""

    def __init__(self, us: ServedSide) -> None:
        self._us = us

    def turn(self, seconds: float) -> Window:
        """Do the trunk's passes for so long."""
        watch = Watch(self._us.tree)
        asked = {"do": "limit", "seconds": seconds}
        done = self._us.ask(asked, 10 * seconds + START_TIMEOUT_S)
        return watch.window(done["amount"], done["wall_s"])


def measure(plan: Plan) -> list[Row]:
    """Return the rows of both sizes of networks and both forms of the peer."""
    return [row for network in SHAPES for row in _rows(plan, network)]


def _rows(plan: Plan, network: str) -> list[Row]:
    turn = (1.0, 1) if plan.quick else (3.0, 3)
    setting = f"the {network} networks, feed-forward, batch {BATCH}, one thread"
    rows = []
    with ServedSide(OURS, "ours/sac.py", {"network": network}) as us:
        plan.add_versions("ours", us.versions)
        against_limit = pairs(us, TrunkAlone(us), *turn)
        for form, name in FORMS.items():
            asked = {"network": network, "form": form}
            with ServedSide(OURS, "peers/sac_cleanrl.py", asked) as side:
                _check(us, side)
                turns = pairs(us, side, *turn)
            rows += compare(ROW, setting, UNIT, name, turns, against_limit)
    return rows


def _check(us: ServedSide, side: ServedSide) -> None:
    """Raise BenchmarkError unless both found the same in their first update."""
    ours, theirs = (each.facts()["first_loss"] for each in (us, side))
    if abs(ours - theirs) > _TOLERANCE * abs(theirs):
        raise BenchmarkError(f"the first update's loss is {ours}, the peer's {theirs}")
