"""B9: messages of a JetStream stream into replay, beside plain nats-py on the same stream.

Ours is the real way, reader and replay on Ray, with the journal on and off; and the intake alone,
without Ray. The peers are nats-py fetching in batches and decoding nothing, which is also the
limit, and the naive client: one message at a time, decoded, its acknowledgement waited for.
Invariant: every turn reads the stream from its start, and our replay's count of transitions is held
against the messages'.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from peers import OURS
from plan import Plan
from results import Row, compare, missing, pairs
from sides import BenchmarkError, ServedSide, Window
from stream_field import TRANSITIONS, Field

ROW = "B9 stream intake"
UNIT = "messages"
MESSAGES = {"sparse": 500, "dense": 60}
QUICK_MESSAGES = {"sparse": 200, "dense": 20}
PEERS = {"fetch": "nats-py, fetched only", "naive": "nats-py, one at a time, decoded"}
WAYS = ("reader and replay, journal", "reader and replay, no journal", "intake alone")


class Reading:
    """A side whose turn reads the field's stream from its start.

    Args:
      field: with the stream.
      side: asked for facts, it makes itself ready for its next turn and tells of the last one.
      counted: transitions that it must have in replay after each turn; None: it has no replay.
    """

    def __init__(self, field: Field, side: ServedSide, counted: int | None = None) -> None:
        self._field, self._side, self._counted = field, side, counted
        side.facts()

    def turn(self, seconds: float) -> Window:
        """Read; BenchmarkError where our replay does not have exactly what the stream has."""
        self._field.forget_readers()
        window = self._field.turn(self._side, seconds)
        if self._counted is not None:
            counts = self._side.facts()
            if counts["transitions"] != self._counted or counts["doubles"]:
                raise BenchmarkError(f"of {self._counted} transitions replay counts {counts}")
        return window


def measure(plan: Plan) -> list[Row]:
    """Return the rows of sparse and of dense messages."""
    counts = QUICK_MESSAGES if plan.quick else MESSAGES
    rows = []
    with Field(plan.scratch / "b9") as field:
        for kind, count in counts.items():
            nbytes = field.fill(kind, count)
            for way in WAYS:
                try:
                    rows += _rows(plan, field, kind, way, nbytes // count)
                except BenchmarkError as why:
                    rows.append(missing(ROW, f"{way}, {kind} messages", UNIT, "", str(why)))
    return rows


def _rows(plan: Plan, field: Field, kind: str, way: str, nbytes: int) -> list[Row]:
    """Rows of one way of ours beside both peers."""
    messages = (QUICK_MESSAGES if plan.quick else MESSAGES)[kind]
    setting = f"{way}, {kind} messages of {nbytes / 1e6:.2f} MB"
    turn = (1.0, 1) if plan.quick else (2.0, 2)
    rows = []
    with ExitStack() as stack:
        us = stack.enter_context(_ours(field, way, messages))
        plan.add_versions("ours", us.versions)
        counted = messages * TRANSITIONS if way != WAYS[2] else None
        ours = Reading(field, us, counted)
        for peer, name in PEERS.items():
            asked = {"url": field.url, "messages": messages, "nbytes": nbytes, "way": peer}
            side = stack.enter_context(ServedSide(OURS, "peers/stream_nats.py", asked))
            turns = pairs(ours, Reading(field, side), *turn)
            named = f"{name} {side.versions['nats-py']}"
            rows += [_with_bytes(row, nbytes) for row in compare(ROW, setting, UNIT, named, turns)]
    return rows


def _ours(field: Field, way: str, messages: int) -> ServedSide:
    asked = {"url": field.url, "messages": messages}
    if way == WAYS[2]:
        return ServedSide(OURS, "ours/stream_intake.py", asked)
    journal = way == WAYS[0]
    asked_too = {"transitions": messages * TRANSITIONS, "journal": journal}
    return ServedSide(OURS, "ours/stream_ray.py", asked | asked_too)


def _with_bytes(row: Row, nbytes: int) -> Row:
    """The row, its rates also in megabytes."""
    assert row.us is not None and row.peer_value is not None
    per = row.unit.removeprefix(UNIT)
    ours, theirs = row.us * nbytes / 1e6, row.peer_value * nbytes / 1e6
    return replace(row, note=f"{ours:,.0f} MB{per} beside {theirs:,.0f}")
