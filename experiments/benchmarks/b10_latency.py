"""B10: from the moment a rover sends a message until a learner may draw its steps.

Ten synthetic rovers at 30 Hz; the real reader, journal and replay on Ray, and a driver that asks
the replay for samples as a learner does. The clock starts when the rover stamps the message, before
it is published, and stops when the driver has been told of the block and holds it in its memory;
all on one machine. The driver asks every 5 ms, which is in the figures.
"""

from __future__ import annotations

import numpy as np
from peers import OURS
from plan import Plan
from results import Row
from sides import BenchmarkError, ServedSide
from stream_field import Field

ROW = "B10 latency"
ROVERS, TURN_S, QUICK_TURN_S, WARM_UP_S = 10, 120.0, 20.0, 5.0
PERCENTILES = (50, 95, 99)
GOAL = "goal: p99 below 100 ms"


def measure(plan: Plan) -> list[Row]:
    """Return a row for each percentile."""
    seconds = QUICK_TURN_S if plan.quick else TURN_S
    with (
        Field(plan.scratch / "b10") as field,
        ServedSide(OURS, "ours/stream_live.py", {"url": field.url, "sampled": True}) as us,
        field.rovers(ROVERS) as rovers,
    ):
        plan.add_versions("ours", us.versions)
        us.turn(WARM_UP_S)
        window = field.turn(us, seconds, rovers.process)
        facts = us.facts()
        rovers.end()
        sent = field.sent(position for position, _ in facts["seen"])
    latencies_ms = [
        1e3 * (seen_s - sent[position])
        for position, seen_s in facts["seen"]
        if sent[position] >= facts["since_s"]
    ]
    if not latencies_ms:
        raise BenchmarkError(f"no message became learnable within {seconds:.0f} s")
    setting = f"{ROVERS} rovers at 30 Hz, {len(latencies_ms)} messages of 0.13 MB"
    raw = {"us": [{**vars(window), "latencies_ms": latencies_ms}]}
    return [
        Row(
            ROW, setting, f"ms, p{percentile}", float(np.percentile(latencies_ms, percentile)),
            "", note=GOAL, raw=raw,
        )
        for percentile in PERCENTILES
    ]  # fmt: skip
