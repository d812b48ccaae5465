"""The learner: counters, publications, skipped batches, and going on from a checkpoint on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning_samples import (
    SETTINGS,
    VECTOR,
    agent,
    assert_same,
    batch,
    everything,
    flatten,
    transitions,
)

from rl_cluster.agents.dqn import DQN
from rl_cluster.checkpoint import CheckpointStore, SchemaError
from rl_cluster.config import AgentConfig, LearnerConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import (
    Learner,
    NothingLearned,
    build_agent,
    build_network,
    checkpoint_schema,
)
from rl_cluster.replay.gather import Batch

SPEC = EnvironmentSpec((4,), np.dtype(np.float32), 3, 1)
CPU = torch.device("cpu")
Published = list[tuple[int, np.ndarray]]


def learner(
    dqn: DQN | None = None, publish_period: int = 3, published: Published | None = None
) -> Learner:
    kept: Published = [] if published is None else published
    return Learner(
        agent() if dqn is None else dqn,
        CPU,
        publish_period,
        lambda version, flat: kept.append((version, flat.copy())),
        {"hidden": 8},
    )


def bad(seed: int) -> Batch:
    made = batch(seed)
    made.r_t[2] = math.nan
    return replace(made, sources=("b", "a", "b", "c", "a", "b"))


def test_each_step_counts_one_update_and_the_batch_s_samples() -> None:
    own = learner()
    for step in range(4):
        (report,) = own.step(batch(step, size=5))
        assert own.counters.updates == step + 1
        assert own.counters.samples == 5 * (step + 1)
        assert report.td_errors is not None
        assert report.td_errors.shape == (5,)
        assert report.td_errors.dtype == np.float32
        assert math.isfinite(report.loss)
    assert own.counters.skipped_batches == 0


def test_a_step_is_the_agent_s_update() -> None:
    own, alone = learner(), agent()
    for step in range(3):
        (report,) = own.step(batch(step))
        found = alone.update(transitions(step), step)
        assert report.td_errors is not None
        assert np.array_equal(report.td_errors, found.td_errors)
        assert (report.loss, report.q_mean) == (found.loss, found.q_mean)
        assert report.gradient_norm == found.gradient_norm
    assert_same(everything(own.agent), everything(alone))


def test_a_report_tells_the_learning_rate_of_its_own_step() -> None:
    own = learner(agent(schedule="step", schedule_updates=2))
    rates = [own.step(batch(step))[0].learning_rate for step in range(5)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    assert own.agent.optimizer.learning_rate.item() == pytest.approx(rates[-1])


def test_a_changed_learning_rate_holds_from_the_next_step_and_its_schedule_goes_on() -> None:
    own = learner(agent(schedule="step", schedule_updates=2))
    alone = agent(schedule="step", schedule_updates=2)
    rates = []
    for step in range(6):
        if step == 3:
            own.change(LearnerConfig(learning_rate=5e-3, publish_period=3))
            alone.settings = replace(alone.settings, learning_rate=5e-3)
        (report,) = own.step(batch(step))
        alone.update(transitions(step), step)
        rates.append(report.learning_rate)
        assert own.agent.optimizer.learning_rate.item() == pytest.approx(report.learning_rate)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 5e-4, 5e-5, 5e-5])
    assert_same(everything(own.agent), everything(alone))


def test_steps_under_way_at_a_change_are_reported_with_the_rate_they_were_taken_at() -> None:
    own = learner()
    own.steps_ahead = 2
    for step in range(2):
        own.step(batch(step))
    own.change(LearnerConfig(learning_rate=5e-3))
    found = [*own.step(batch(2)), *own.finish()]
    assert [report.learning_rate for report in found] == pytest.approx([1e-3, 1e-3, 5e-3])


def test_a_changed_period_of_publication_holds_from_the_next_step() -> None:
    published: Published = []
    own = learner(publish_period=100, published=published)
    for step in range(3):
        own.step(batch(step))
    own.change(LearnerConfig(publish_period=2))
    versions = []
    for step in range(3, 8):
        own.step(batch(step))
        versions.append(own.counters.policy_version)
    assert versions == [0, 0, 1, 1, 2]
    assert [version for version, _ in published] == [0, 1, 2]


def test_what_was_changed_survives_a_resume_with_the_changed_configuration(tmp_path: Path) -> None:
    store, steady = CheckpointStore(tmp_path, keep=1), learner()
    changed = LearnerConfig(learning_rate=5e-3, publish_period=2)
    steady.step(batch(0))
    steady.change(changed)
    steady.step(batch(1))
    path = store.save(steady.checkpoint({}))
    resumed = learner(agent(seed=5, learning_rate=changed.learning_rate), changed.publish_period)
    resumed.restore(store.load(path))
    for step in range(2, 5):
        (wanted,), (found,) = steady.step(batch(step)), resumed.step(batch(step))
        assert found.learning_rate == wanted.learning_rate
    assert_same(everything(resumed.agent), everything(steady.agent))
    assert resumed.counters == steady.counters


def test_a_learner_takes_batches_of_any_size_in_turn() -> None:
    own, alone = learner(agent(micro_batch=4)), agent(micro_batch=4)
    sizes = [6, 3, 12, 1]
    for step, size in enumerate(sizes):
        (report,) = own.step(batch(step, size=size))
        alone.update(transitions(step, size=size), step)
        assert report.td_errors is not None and len(report.td_errors) == size
    assert own.counters.samples == sum(sizes)
    assert_same(everything(own.agent), everything(alone))


def test_versions_grow_by_one_each_period() -> None:
    published: Published = []
    own = learner(publish_period=3, published=published)
    own.publish()
    for step in range(10):
        own.step(batch(step))
    assert [version for version, _ in published] == [0, 1, 2, 3]
    assert own.counters.policy_version == 3


def test_steps_ahead_are_reported_late_and_none_is_lost() -> None:
    """As on a GPU, which is kept busy by a few steps ahead."""
    published: Published = []
    steady, own = learner(), learner(publish_period=3, published=published)
    own.steps_ahead = 2
    wanted = [steady.step(batch(step))[0].loss for step in range(4)]
    found = [[report.loss for report in own.step(batch(step))] for step in range(4)]
    assert found == [[], [], wanted[:1], wanted[1:2]]
    assert own.counters.updates == 2
    assert [report.loss for report in own.finish()] == wanted[2:]
    assert own.counters == replace(steady.counters, policy_version=0)
    assert_same(everything(own.agent), everything(steady.agent))


def test_a_version_is_given_out_as_soon_as_nothing_is_under_way() -> None:
    published: Published = []
    own = learner(publish_period=2, published=published)
    own.steps_ahead = 2
    own.publish()
    assert [version for version, _ in published] == [0]
    for step in range(4):
        own.step(batch(step))
    assert [version for version, _ in published] == [0]
    own.finish()
    assert [version for version, _ in published] == [0, 1, 2]


def test_what_is_published_is_the_online_network_of_that_moment() -> None:
    published: Published = []
    own = learner(publish_period=2, published=published)
    own.step(batch(0))
    assert published == []
    own.step(batch(1))
    wanted = flatten(own.agent.online.network)
    own.step(batch(2))
    assert np.array_equal(published[0][1], wanted)
    assert not np.array_equal(flatten(own.agent.online.network), wanted)


def test_a_skipped_batch_is_counted_and_names_its_sources_and_changes_nothing_else() -> None:
    published: Published = []
    own = learner(publish_period=2, published=published)
    own.step(batch(0))
    before, counters = everything(own.agent), replace(own.counters)
    (report,) = own.step(bad(1))
    assert report.td_errors is None
    assert report.skipped_sources == ("a", "b", "c")
    assert report.skipped_because is not None
    assert "not finite" in report.skipped_because
    assert math.isnan(report.loss)
    assert own.counters == replace(counters, skipped_batches=1)
    assert published == []
    assert_same(everything(own.agent), before)
    own.step(batch(2))
    assert [version for version, _ in published] == [0]


def overflowing(seed: int) -> Batch:
    """Finite data, whose loss is not."""
    return replace(batch(seed), r_t=np.full(6, 3e38, np.float32), sources=("a",) * 6)


def test_so_many_skipped_in_a_row_are_an_error_that_names_the_cause() -> None:
    own = learner(agent(huber_delta=1e30))
    own.step(batch(0))
    for step in range(4):
        own.step(overflowing(step))
        own.check_learns(most_skipped=5)
    own.step(overflowing(4))
    with pytest.raises(NothingLearned, match=r"last 5 batches .*loss (inf|nan).*of a: .*diverged"):
        own.check_learns(most_skipped=5)
    own.step(bad(5))
    with pytest.raises(NothingLearned, match=r"last 6 batches .*of a, b, c: mend what gives such"):
        own.check_learns(most_skipped=5)


def test_one_batch_that_was_learned_from_ends_a_row() -> None:
    """However many are skipped in between, as where a game gives NaN now and then."""
    own = learner()
    for step in range(60):
        own.step(batch(step) if step % 3 == 0 else bad(step))
        own.check_learns(most_skipped=3)
    assert own.counters.skipped_batches == 40
    assert own.skipped_in_a_row == 2


def test_the_sources_of_a_large_batch_are_not_all_spelt_out() -> None:
    sources = tuple(f"env/{i}" for i in range(6))
    (report,) = learner().step(replace(bad(0), sources=sources))
    assert report.skipped_cause == (
        "the batch holds values that are not finite; blocks of env/0, env/1, env/2 and 3 more"
    )


def test_a_life_that_skips_more_than_it_learns_is_in_vain(tmp_path: Path) -> None:
    own = learner()
    assert not own.in_vain, "it has only begun"
    for step in range(3):
        own.step(batch(step))
    for step in range(3):
        own.step(bad(step))
        assert not own.in_vain
    own.step(bad(3))
    assert own.in_vain
    store = CheckpointStore(tmp_path, keep=1)
    store.save(own.checkpoint({}))
    loaded = store.load_latest(own.schema)
    assert loaded is not None
    heir = learner()
    heir.restore(loaded.checkpoint)
    assert not heir.in_vain
    heir.step(bad(4))
    assert heir.in_vain, "what an earlier life learned is not its own"


def test_what_is_saved_while_batches_are_skipped_is_finite() -> None:
    own = learner(agent(huber_delta=1e30))
    own.step(batch(0))
    before = everything(own.agent)
    for step in range(5):
        own.step(overflowing(step))
    saved = own.checkpoint({})
    assert saved.step == 1
    assert_same(everything(own.agent), before)
    assert all(torch.isfinite(tensor).all() for tensor in saved.model.values())


def test_a_batch_that_was_learned_from_is_not_called_skipped() -> None:
    (report,) = learner().step(batch(0))
    assert report.skipped_because is None
    assert report.skipped_sources == ()


def test_a_batch_stays_as_it_was() -> None:
    own, made, twin = learner(), batch(0), batch(0)
    own.step(made)
    for name in ("s_tm1", "a_tm1", "r_t", "discount_t", "s_t", "weights"):
        assert np.array_equal(getattr(made, name), getattr(twin, name))


def test_a_resumed_learner_continues_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    published: Published = []
    steady, interrupted = learner(), learner()
    for step in range(4):
        for each in (steady, interrupted):
            each.step(bad(step) if step == 2 else batch(step))
    store.save(interrupted.checkpoint({"tracker_id": "x"}))
    resumed = learner(agent(seed=7), published=published)
    loaded = store.load_latest(resumed.schema)
    assert loaded is not None
    assert loaded.checkpoint.step == 3
    assert loaded.checkpoint.state["tracker_id"] == "x"
    resumed.restore(loaded.checkpoint)
    assert resumed.counters == steady.counters
    for step in range(4, 10):
        (wanted,), (found,) = steady.step(batch(step)), resumed.step(batch(step))
        assert found.loss == wanted.loss
    assert_same(everything(resumed.agent), everything(steady.agent))
    assert resumed.counters == steady.counters
    assert [version for version, _ in published] == [1, 2]


def test_the_random_state_of_torch_goes_on_where_it_was(tmp_path: Path) -> None:
    store, own = CheckpointStore(tmp_path, keep=1), learner()
    path = store.save(own.checkpoint({}))
    wanted = torch.rand(5)
    torch.manual_seed(12345)
    own.restore(store.load(path))
    assert torch.equal(torch.rand(5), wanted)


def test_a_checkpoint_is_of_its_moment_once_it_is_saved(tmp_path: Path) -> None:
    store, own = CheckpointStore(tmp_path, keep=1), learner()
    own.step(batch(0))
    wanted = everything(own.agent)
    path = store.save(own.checkpoint({}))
    own.step(batch(1))
    restored = learner(agent(seed=5))
    restored.restore(store.load(path))
    assert_same(everything(restored.agent), wanted)
    assert restored.counters.updates == 1


def test_a_checkpoint_of_another_architecture_changes_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    other = learner(agent(hidden=9))
    other.step(batch(0))
    path = store.save(other.checkpoint({}))
    own = learner()
    own.step(batch(1))
    before, counters, random = everything(own.agent), replace(own.counters), torch.get_rng_state()
    with pytest.raises(ValueError, match="does not fit this configuration"):
        own.restore(store.load(path))
    assert_same(everything(own.agent), before)
    assert own.counters == counters
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    "change",
    [
        lambda config, spec: (replace(config, hidden=9), spec),
        lambda config, spec: (replace(config, dueling=False), spec),
        lambda config, spec: (replace(config, frame_stack=2), spec),
        lambda config, spec: (replace(config, conv_channels=(8,)), spec),
        lambda config, spec: (config, replace(spec, num_actions=4)),
        lambda config, spec: (config, replace(spec, obs_shape=(5,))),
        lambda config, spec: (config, replace(spec, obs_dtype=np.dtype(np.uint8))),
    ],
)
def test_the_schema_differs_wherever_a_network_would(
    tmp_path: Path,
    change: Callable[[AgentConfig, EnvironmentSpec], tuple[AgentConfig, EnvironmentSpec]],
) -> None:
    config = AgentConfig(hidden=8)
    store = CheckpointStore(tmp_path, keep=1)
    own = Learner(
        build_agent(config, LearnerConfig(), SPEC, CPU),
        CPU,
        1,
        lambda version, flat: None,
        checkpoint_schema(config, SPEC),
    )
    path = store.save(own.checkpoint({}))
    store.load(path, checkpoint_schema(config, SPEC))
    with pytest.raises(SchemaError, match="another schema"):
        store.load(path, checkpoint_schema(*change(config, SPEC)))


def test_an_agent_is_built_as_it_is_configured() -> None:
    config = AgentConfig(frame_stack=VECTOR[0], double=False, huber_delta=2.0, hidden=8)
    how = LearnerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        schedule_updates=7,
        schedule_factor=0.3,
        adam_epsilon=1e-5,
        max_gradient_norm=3.0,
        precision="float32",
        target="averaging",
        target_period=11,
        target_tau=0.2,
    )
    built = build_agent(config, how, SPEC, CPU)
    wanted = replace(
        SETTINGS,
        double=False,
        huber_delta=2.0,
        schedule="cosine",
        schedule_updates=7,
        schedule_factor=0.3,
        adam_epsilon=1e-5,
        max_gradient_norm=3.0,
        target="averaging",
        target_period=11,
        target_tau=0.2,
    )
    assert built.settings == wanted
    assert built.online.network(torch.zeros(1, *VECTOR)).shape == (1, 3)
    assert build_agent(config, replace(how, precision="bfloat16"), SPEC, CPU).settings.bfloat16
    seen: list[int] = []
    in_passes = build_agent(config, replace(how, micro_batch=4), SPEC, CPU)
    in_passes.online.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    in_passes.warm_up(transitions(0))
    assert max(seen) == 3 and len(seen) == 2


def test_the_same_seed_gives_the_same_parameters() -> None:
    flats = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        flats.append(flatten(build_network(AgentConfig(hidden=8), SPEC)))
    assert np.array_equal(flats[0], flats[1])
    assert not np.array_equal(flats[0], flats[2])
