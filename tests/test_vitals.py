"""What an actor says of itself in a line: name, state, figures, and how old they are."""

from __future__ import annotations

import asyncio
import re

import pytest

from rl_cluster.cluster.courier_actor import CourierActor
from rl_cluster.cluster.evaluator_actor import EvaluatorActor
from rl_cluster.cluster.field_actor import FieldActor
from rl_cluster.cluster.learner_actor import LearnerActor
from rl_cluster.cluster.reader_actor import ReaderActor
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.cluster.rollout_actor import RolloutActor
from rl_cluster.cluster.supervisor_actor import SupervisorActor
from rl_cluster.cluster.vitals import Vitals
from rl_cluster.cluster.weights_actor import WeightsActor


def test_a_line_has_name_state_figures_life_and_age() -> None:
    vitals = Vitals(3, "starting")
    vitals.enter("working")
    assert re.fullmatch(
        r"<learner:Pong: working, policy 7; life 3, \d+ s old>",
        vitals.line("learner:Pong", "policy 7"),
    )


def test_a_speed_is_the_growth_since_the_question_before(monkeypatch: pytest.MonkeyPatch) -> None:
    vitals, clock = Vitals(1, "working"), iter((10.0, 12.0, 16.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert vitals.per_s(1_000) == 0.0  # restored: nobody has counted yet
    assert vitals.per_s(1_100) == 50.0
    assert vitals.per_s(1_100) == 0.0


def test_the_holder_of_weights_names_every_tasks_newest() -> None:
    weights = WeightsActor()
    assert re.fullmatch(r"<weights: waiting; life 0, \d+ s old>", repr(weights))

    async def publish() -> None:
        await weights.publish("Pong", 1, 4, [])
        await weights.publish("Catch", 1, 2, [])

    asyncio.run(publish())
    assert repr(weights).startswith("<weights: waiting, Pong 4, Catch 2;")


@pytest.mark.parametrize(
    "actor",
    [
        CourierActor,
        EvaluatorActor,
        FieldActor,
        LearnerActor,
        ReaderActor,
        ReplayActor,
        RolloutActor,
        SupervisorActor,
        WeightsActor,
    ],
)
def test_one_whose_constructor_failed_can_still_be_named(actor: type) -> None:
    """Ray asks for its name while it tells the error, and an error there would hide that."""
    assert repr(actor.__new__(actor)) == f"<{actor.__name__}: not made>"
