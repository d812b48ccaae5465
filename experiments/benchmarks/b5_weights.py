"""B5: from the publication of 13 MB of weights until 1, 8 and 32 rollouts act with them.

Ours is the whole real way, with receivers that look for weights between two environment steps; the
peers' receivers wait idle for their call, the best case for them. The limit is one copy of the
bytes. Less is better here, so a ratio is the peer's value over ours. Invariant: what arrived is
compared with what was sent before anything is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import OURS, python_of
from plan import Plan
from results import Row, interval, missing
from sides import BenchmarkError, ServedSide, Window

ROW = "B5 weights"
PERCENTILES = (50, 95)
COPY_S = 0.5
WARM_UP_S = 0.5


@dataclass(frozen=True)
class Peer:
    """A competitor; `environment` is None where it runs in ours."""

    name: str
    environment: str | None
    script: str
    most_receivers: int

    @property
    def python(self) -> Path:
        """Interpreter that it runs with."""
        return OURS if self.environment is None else python_of(self.environment)


PEERS = (
    Peer("torch state dict per actor, Ray", None, "peers/weights_state_dict.py", 32),
    Peer("RLlib sync_weights", "rllib", "peers/weights_rllib.py", 8),
)


@dataclass(frozen=True)
class Turn:
    """What one side measured in one turn."""

    window: Window
    facts: Mapping[str, Any]

    def latency_ms(self, receivers: int, percentile: int) -> float:
        """Of all publications to so many receivers, each counted alone."""
        return float(np.percentile(self.facts["latencies_ms"][str(receivers)], percentile))

    def own_ms(self, receivers: int) -> float:
        """What a publication took of the publisher's own thread."""
        return float(statistics.median(self.facts["own_ms"][str(receivers)]))

    def raw(self, receivers: int) -> dict[str, Any]:
        """All that was measured with so many receivers."""
        figures = {key: self.facts[key][str(receivers)] for key in ("latencies_ms", "own_ms")}
        return {**vars(self.window), **figures}


def measure(plan: Plan) -> list[Row]:
    """Return the rows of every number of receivers."""
    counts, turn_s, rounds = ([8], 1.5, 1) if plan.quick else ([1, 8, 32], 2.5, 2)
    with ServedSide(OURS, "ours/weights.py", {"receivers": counts}) as us:
        limit_ms = _copy_ms(_checked(us)["bytes"])
        plan.add_versions("ours", us.versions)
        comparison = Comparison(plan, us, counts, turn_s, rounds, limit_ms)
        rows = [row for peer in PEERS for row in comparison.beside(peer)]
        share = _turn(us, turn_s)
        return [*rows, *(_share_row(count, share) for count in counts)]


class Comparison:
    """Our side beside one peer after the other.

    Args:
      us: our side. counts: numbers of receivers. turn_s: seconds of publications to each number.
      rounds: of four turns. limit_ms: one copy of the bytes.
    """

    def __init__(
        self,
        plan: Plan,
        us: ServedSide,
        counts: list[int],
        turn_s: float,
        rounds: int,
        limit_ms: float,
    ) -> None:
        self._plan, self._us, self._counts = plan, us, counts
        self._turn_s, self._rounds, self._limit_ms = turn_s, rounds, limit_ms

    def beside(self, peer: Peer) -> list[Row]:
        """Rows of a peer; where it cannot be measured, rows that say why."""
        counts = [count for count in self._counts if count <= peer.most_receivers]
        rows = [
            self._missing(peer, count, f"not started: {count} runners are too heavy for a host")
            for count in self._counts
            if count not in counts
        ]
        if peer.environment is not None and peer.environment in self._plan.missing:
            why = self._plan.missing[peer.environment]
            return [*(self._missing(peer, count, why) for count in counts), *rows]
        try:
            with ServedSide(peer.python, peer.script, {"receivers": counts}) as side:
                _checked(side)
                self._plan.add_versions(peer.environment or "state dict", side.versions)
                name = f"{peer.name} {side.versions['ray']}"
                turns = self._turns(side)
        except BenchmarkError as error:
            return [*(self._missing(peer, count, str(error)) for count in counts), *rows]
        return [*(row for count in counts for row in self._rows(name, count, turns)), *rows]

    def _turns(self, side: ServedSide) -> list[tuple[Turn, Turn]]:
        """Turns of ours and the side's, A B B A each round."""
        turns = []
        for _ in range(self._rounds):
            first, theirs = _turn(self._us, self._turn_s), _turn(side, self._turn_s)
            turns.append((first, theirs))
            theirs = _turn(side, self._turn_s)
            turns.append((_turn(self._us, self._turn_s), theirs))
        return turns

    def _rows(self, name: str, count: int, turns: list[tuple[Turn, Turn]]) -> list[Row]:
        return [self._row(name, count, turns, percentile) for percentile in PERCENTILES]

    def _row(self, name: str, count: int, turns: list[tuple[Turn, Turn]], percentile: int) -> Row:
        ours = [turn.latency_ms(count, percentile) for turn, _ in turns]
        theirs = [turn.latency_ms(count, percentile) for _, turn in turns]
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        low, high = interval(ratios)
        us = statistics.median(ours)
        return Row(
            ROW,
            _setting(count),
            f"ms, p{percentile}",
            us,
            name,
            statistics.median(theirs),
            statistics.median(ratios),
            low,
            high,
            self._limit_ms,
            self._limit_ms / us,
            raw={
                "us": [our.raw(count) for our, _ in turns],
                "peer": [their.raw(count) for _, their in turns],
            },
        )

    def _missing(self, peer: Peer, count: int, why: str) -> Row:
        return missing(ROW, _setting(count), "ms", peer.name, why)


def _setting(count: int) -> str:
    return f"13 MB to {count} rollout{'s' if count > 1 else ''}"


def _turn(side: ServedSide, seconds: float) -> Turn:
    window = side.turn(seconds)
    return Turn(window, side.facts())


def _checked(side: ServedSide) -> dict[str, Any]:
    """Let a side warm up, and compare what arrived with what was sent."""
    side.turn(WARM_UP_S)
    facts = side.facts()
    if not facts["as_sent"]:
        raise BenchmarkError(f"{side.name}: other weights arrived than were sent")
    return facts


def _copy_ms(size: int) -> float:
    """Milliseconds of one copy of so many bytes."""
    with ServedSide(OURS, "ours/weights_limit.py", {"bytes": size}) as side:
        side.turn(COPY_S)
        return 1e3 / side.turn(COPY_S).rate


def _share_row(count: int, turn: Turn) -> Row:
    """What publication takes of the learner's time at the default period."""
    own_ms, update_ms = turn.own_ms(count), turn.facts["update_ms"]
    period = turn.facts["publish_period"]
    share = own_ms / (own_ms + period * update_ms)
    note = f"{own_ms:.1f} ms every {period} updates, of which there are {1e3 / update_ms:.0f}/s"
    return Row(
        ROW, _setting(count), "% of the learner's time", 100 * share, "", note=note,
        raw={"us": [turn.raw(count)]},
    )  # fmt: skip
