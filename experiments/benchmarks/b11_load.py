"""B11: a hundred synthetic rovers at 30 Hz for a minute: nothing is lost, and what that costs.

Invariant: the counts of all who had a message in hand are compared: acknowledged to the rovers,
read, in replay (by transitions), acknowledged to the server; any difference is the row's failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from peers import OURS
from plan import Plan
from results import Row
from sides import BenchmarkError, ServedSide, Window
from stream_field import TRANSITIONS, Field, Rovers

ROW = "B11 load"
ROVERS, TURN_S, QUICK_TURN_S = 100, 60.0, 15.0
_CATCH_UP_S = 120.0


def measure(plan: Plan) -> list[Row]:
    """Return the rows of one minute."""
    seconds = QUICK_TURN_S if plan.quick else TURN_S
    with (
        Field(plan.scratch / "b11") as field,
        ServedSide(OURS, "ours/stream_live.py", {"url": field.url, "sampled": False}) as us,
        field.rovers(ROVERS) as rovers,
    ):
        plan.add_versions("ours", us.versions)
        _wait(us, lambda counts: counts["messages"] >= ROVERS)
        server_s, rovers_s = field.server_cpu_s(), rovers.cpu_s()
        before = us.facts()["messages"]
        window = field.turn(us, seconds, rovers.process)
        read = us.facts()["messages"] - before
        costs = _costs(field, rovers, window, server_s, rovers_s)
        sent = rovers.end()["acknowledged"]
        counts = _wait(us, lambda c: c["messages"] >= sent and c["in_flight"] == 0)
    _check(sent, counts)
    setting = f"{ROVERS} rovers at 30 Hz for {seconds:.0f} s, journal, {sent} messages in all"
    raw = {"us": [{**vars(window), **counts}]}
    return [
        Row(ROW, setting, "messages lost", 0.0, "", note="and none doubled", raw=raw),
        Row(ROW, setting, "messages/s", read / window.wall_s, "", raw=raw),
        Row(ROW, setting, "% of one core", costs["ours"], "", note=_said(costs), raw=raw),
    ]


def _wait(us: ServedSide, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until it is done, but not for ever; what was counted then."""
    end_s = time.monotonic() + _CATCH_UP_S
    while True:
        counts = us.facts()
        del counts["seen"], counts["since_s"]
        if done(counts) or time.monotonic() > end_s:
            return counts
        time.sleep(0.5)


def _check(sent: int, counts: dict[str, Any]) -> None:
    """Raise BenchmarkError unless all counts agree."""
    wanted = {
        "messages": sent,
        "in_flight": 0,
        "expired": 0,
        "transitions": sent * TRANSITIONS,
        "doubles": 0,
    }
    if counts != wanted:
        raise BenchmarkError(f"rovers sent {sent} messages, which are {wanted}; counted: {counts}")


def _costs(
    field: Field, rovers: Rovers, window: Window, server_s: float, rovers_s: float
) -> dict[str, float]:
    """Shares of one core in %: reader, replay and Ray; the server; the rovers."""
    spent = {
        "ours": window.cpu_s,
        "server": field.server_cpu_s() - server_s,
        "rovers": rovers.cpu_s() - rovers_s,
    }
    return {name: 100 * seconds / window.wall_s for name, seconds in spent.items()}


def _said(costs: dict[str, float]) -> str:
    return f"beside it the server {costs['server']:.0f} %, the rovers {costs['rovers']:.0f} %"
