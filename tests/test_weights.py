"""The weight store: the newest version of each task, and never an older one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rl_cluster.weights import PublishedWeights, WeightStore


def test_a_task_without_weights_has_version_minus_one_and_nothing_to_give() -> None:
    store: WeightStore[str] = WeightStore()
    assert store.version("Pong") == -1
    assert store.newer_than("Pong", -1) is None


def test_a_rollout_gets_the_newest_version_once() -> None:
    store: WeightStore[str] = WeightStore()
    assert store.publish("Pong", 1, 0, "first")
    assert store.publish("Pong", 1, 1, "second")
    assert store.newer_than("Pong", -1) == PublishedWeights(1, "second")
    assert store.newer_than("Pong", 0) == PublishedWeights(1, "second")
    assert store.newer_than("Pong", 1) is None


def test_an_older_or_equal_version_is_refused_and_the_newest_stays() -> None:
    store: WeightStore[str] = WeightStore()
    store.publish("Pong", 1, 5, "good")
    assert not store.publish("Pong", 1, 5, "again")
    assert not store.publish("Pong", 1, 4, "from the dead")
    assert store.newer_than("Pong", -1) == PublishedWeights(5, "good")


def test_a_learner_that_went_on_far_ahead_is_followed() -> None:
    store: WeightStore[str] = WeightStore()
    store.publish("Pong", 1, 1, "a")
    assert store.publish("Pong", 1, 40, "b")
    assert store.version("Pong") == 40


def test_a_learner_whose_epoch_is_over_is_refused_however_far_ahead_it_is() -> None:
    store: WeightStore[str] = WeightStore()
    assert store.publish("Pong", 1, 3, "before")
    assert store.publish("Pong", 2, 4, "its heir")
    assert not store.publish("Pong", 1, 90, "thawed")
    assert store.publish("Breakout", 1, 0, "another task's")
    assert store.newer_than("Pong", -1) == PublishedWeights(4, "its heir")


@given(st.lists(st.tuples(st.sampled_from(["Pong", "Breakout"]), st.integers(0, 9))))
def test_versions_only_grow_and_tasks_do_not_touch_each_other(
    publications: list[tuple[str, int]],
) -> None:
    store: WeightStore[tuple[str, int]] = WeightStore()
    newest = {"Pong": -1, "Breakout": -1}
    for task, version in publications:
        assert store.publish(task, 1, version, (task, version)) == (version > newest[task])
        newest[task] = max(newest[task], version)
        for name, wanted in newest.items():
            assert store.version(name) == wanted
            given_out = store.newer_than(name, -1)
            held = None if wanted < 0 else PublishedWeights(wanted, (name, wanted))
            assert given_out == held
