"""A stream that rovers fill while it is read, as the side of B10 and B11: reader and replay on Ray.

In a turn the driver stands in the learner's place: it asks the replay for samples again and again,
and notes when a block was named to it and lies mapped in its memory, so that from then on a batch
may hold it. Asked not to sample, it only lets the others work. The reader reads from its start on.

Asked: url, sampled (whether to ask for samples).
"""

from __future__ import annotations

import time
from typing import Any

from cluster import start_cluster
from serve import arguments, serve
from stream_pair import OBJECT_STORE_BYTES, TIMEOUT_S, Pair

from rl_cluster.cluster.actors import read
from rl_cluster.cluster.messages import SampleReply, SampleRequest
from rl_cluster.replay.block import Block

_PAUSE_S = 0.005


class Live:
    """The pair, and the driver in the learner's place."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._sampled = asked["sampled"]
        self._pair = Pair(asked["url"], journal=True)
        self._pair.start()
        self._known, self._seen = -1, list[tuple[int, float]]()
        self._since_s = 0.0

    def work_for(self, seconds: float) -> float:
        """Watch for so long; return the blocks that became learnable."""
        self._since_s = time.time()
        end_s, before = time.monotonic() + seconds, len(self._seen)
        if not self._sampled:
            time.sleep(seconds)
        while time.monotonic() < end_s:
            self._look()
            time.sleep(_PAUSE_S)
        return float(len(self._seen) - before)

    def _look(self) -> None:
        request = SampleRequest(self._known, 0, 0, 1, ())
        reply: SampleReply = read(self._pair.replay.sample.remote(request), TIMEOUT_S)
        for arrival, _, ref in reply.new_blocks:
            block: Block = read(ref, TIMEOUT_S)
            self._seen.append((block.sequence, time.time()))
            self._known = arrival

    def facts(self) -> dict[str, Any]:
        """What the pair counts; position and unix seconds of the blocks seen in turns; and when the
        last turn began: what was sent earlier may have waited for it."""
        return {**self._pair.counts(), "seen": self._seen, "since_s": self._since_s}


if __name__ == "__main__":
    start_cluster("bench", OBJECT_STORE_BYTES)
    live = Live(arguments())
    serve(lambda: 0.0, ("rl-cluster", "ray"), live.facts, live.work_for)
