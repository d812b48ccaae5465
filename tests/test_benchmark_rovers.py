"""The rovers' benchmarks, each in small: every row comes to its end and measures what it says."""

from __future__ import annotations

from pathlib import Path

import b9_intake
import b10_latency
import b11_load
import b12_sac
import numpy as np
import pytest
import stream_field
from peers import OURS
from plan import Plan
from results import Row
from sides import BenchmarkError, ServedSide

from rl_cluster.streams.codec import DecodeLimits, decode_experience
from rl_cluster.streams.cutting import cut

MESSAGES = {"sparse": 12}
LIVE = pytest.mark.timeout(400)  # a Ray cluster or more, and the machine may be shared


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(quick=True, scratch=tmp_path)


def named(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row.setting, row.unit): row for row in rows}


@pytest.mark.parametrize(("kind", "megabytes"), [("sparse", 0.13), ("dense", 7.5)])
def test_recorded_messages_are_of_the_protocol_and_of_the_sizes_it_tells_of(
    kind: str, megabytes: float
) -> None:
    first, second = stream_field.recorded(kind, 2)
    payload = first.payload(0.0)
    assert len(payload) / 1e6 == pytest.approx(megabytes, rel=0.05)
    assert first.message_id != second.message_id
    experience = decode_experience(payload, DecodeLimits())
    (block,) = cut(experience, source="r", message="m", position=1, policy_version=-1, length=64)
    assert block.info().transitions == stream_field.TRANSITIONS
    np.testing.assert_array_equal(experience.bev, stream_field.views(kind))


@LIVE
@pytest.mark.long
def test_intake_is_measured_beside_plain_clients_of_the_same_stream(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b9_intake, "QUICK_MESSAGES", MESSAGES)
    rows = b9_intake.measure(plan)
    assert len(rows) == len(MESSAGES) * len(b9_intake.WAYS) * len(b9_intake.PEERS) * 2
    for row in rows:
        assert row.us and row.peer_value and row.ratio, row
        count = MESSAGES["sparse"]
        for window in (*row.raw["us"], *row.raw["peer"]):
            assert window["amount"] > 0 and window["amount"] % count == 0
        for window in row.raw["us"] if "replay" in row.setting else ():
            assert window["amount"] == count  # once, as a replay takes nothing twice


@LIVE
@pytest.mark.long
def test_a_replay_that_lacks_transitions_is_an_error_and_not_a_figure(plan: Plan) -> None:
    with stream_field.Field(plan.scratch / "field") as field:
        field.fill("sparse", 3)
        asked = {"url": field.url, "messages": 3, "transitions": 1, "journal": False}
        with ServedSide(OURS, "ours/stream_ray.py", asked) as us:
            reading = b9_intake.Reading(field, us, counted=3 * stream_field.TRANSITIONS + 1)
            with pytest.raises(BenchmarkError, match="replay counts"):
                reading.turn(0.1)


@LIVE
@pytest.mark.long
def test_latency_is_of_the_messages_that_were_sent_and_seen_in_the_turn(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b10_latency, "QUICK_TURN_S", 6.0)
    rows = b10_latency.measure(plan)
    latencies_ms = rows[0].raw["us"][0]["latencies_ms"]
    assert 0 < len(latencies_ms) <= rows[0].raw["us"][0]["amount"]
    assert min(latencies_ms) > 0
    middle, high, highest = (row.us for row in rows)
    assert middle <= high <= highest <= max(latencies_ms)


@LIVE
@pytest.mark.long
def test_load_counts_what_every_part_had_in_hand(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b11_load, "ROVERS", 5)
    monkeypatch.setattr(b11_load, "QUICK_TURN_S", 4.0)
    lost, rate, cost = b11_load.measure(plan)
    counts = lost.raw["us"][0]
    assert lost.us == 0 and counts["messages"] >= 5
    assert counts["transitions"] == counts["messages"] * stream_field.TRANSITIONS
    assert rate.us and cost.us


@pytest.mark.parametrize(
    "changed", [{"messages": 9}, {"in_flight": 1}, {"expired": 1}, {"transitions": 1}]
)
def test_load_that_lost_something_is_no_figure(changed: dict[str, int]) -> None:
    whole = {"messages": 10, "in_flight": 0, "expired": 0, "transitions": 630, "doubles": 0}
    b11_load._check(10, whole)
    with pytest.raises(BenchmarkError, match="counted"):
        b11_load._check(10, whole | changed)


@LIVE
@pytest.mark.long
def test_updates_are_compared_where_both_learn_the_same(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b12_sac, "SHAPES", {"quickstart": b12_sac.SHAPES["quickstart"]})
    rows = b12_sac.measure(plan)
    assert len(rows) == len(b12_sac.FORMS) * 2
    for row in rows:
        assert row.us and row.peer_value and row.ratio and row.of_limit, row
    asked = {"network": "quickstart", "form": "shared"}
    with (
        ServedSide(OURS, "ours/sac.py", {"network": "default"}) as us,
        ServedSide(OURS, "peers/sac_cleanrl.py", asked) as side,
        pytest.raises(BenchmarkError, match="first update's loss"),
    ):
        b12_sac._check(us, side)
