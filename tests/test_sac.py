"""One update of soft actor-critic: equal to plain loops, whole or not at all, and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from learning_samples import assert_same
from naive_sac import NaiveSAC
from sac_samples import RECURRENT, SHAPE, agent, everything, sequences
from torch.nn.utils import parameters_to_vector

from rl_cluster.agents.sac import SAC, Sequences
from rl_cluster.agents.sac_networks import SACShape, build_actor
from rl_cluster.agents.update import SkippedBatch


@pytest.mark.parametrize("shape", [SHAPE, RECURRENT], ids=["none", "lstm"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_step": 3},
        {"max_gradient_norm": 0.05},
        {"burn_in": 3, "unroll": 4},
        {"burn_in": 2, "unroll": 3, "n_step": 2, "discount": 0.9, "tau": 0.3},
    ],
    ids=str,
)
def test_updates_are_those_of_plain_loops(shape: SACShape, settings: dict[str, object]) -> None:
    sac = agent(shape, **settings)
    with torch.no_grad():  # a target of its own, or it could not be told from the critics
        sac.target.vector.add_(0.1 * torch.randn_like(sac.target.vector))
    naive = NaiveSAC(sac)
    for update in range(3):
        batch = sequences(update, sac)
        torch.manual_seed(update)
        found = sac.update(batch, update)
        torch.manual_seed(update)
        (critic, actor, _), errors = naive.update(batch)
        assert found.loss == pytest.approx(critic, rel=1e-4)
        assert found.others["actor_loss"] == pytest.approx(actor, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(found.td_errors, torch.tensor(errors), rtol=1e-4, atol=1e-5)
    for own, other in (
        (sac.critic.flat.vector, naive.critic.parameters()),
        (sac.actor.flat.vector, naive.heads.parameters()),
        (sac.temperature.flat.vector, [naive.log_alpha]),
        (sac.target.vector, naive.target.parameters()),
    ):
        wanted = parameters_to_vector(other)
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=2e-5)


def test_the_memory_of_the_burn_in_is_the_one_that_stepping_gives() -> None:
    """Which rows went before changes what is known; without a memory it does not."""
    for shape, matters in ((RECURRENT, True), (SHAPE, False)):
        sac = agent(shape, burn_in=4)
        batch = sequences(0, sac)
        batch.valid[:], batch.ends[:], batch.terminal[:] = True, False, False
        torch.manual_seed(0)
        found = agent(shape, burn_in=4).update(batch, 0).loss
        batch.observations[:, 0] += 1
        torch.manual_seed(0)
        changed = agent(shape, burn_in=4).update(batch, 0).loss
        assert (found != changed) == matters


def test_what_is_not_valid_or_of_another_episode_changes_nothing() -> None:
    sac = agent(RECURRENT, burn_in=2, unroll=3, n_step=2)
    batch = sequences(3, sac)
    batch.valid[:, 0], batch.valid[:, -1] = False, False
    batch.ends[:, 1], batch.terminal[:, 1] = True, False
    twin = agent(RECURRENT, burn_in=2, unroll=3, n_step=2)
    found, other = [], Sequences(*(tensor.clone() for tensor in vars(batch).values()))
    other.observations[:, :2] = 3.0
    for tensor in (other.rewards, other.actions, other.observations):
        tensor[:, -1] = 5.0
    for each, given in ((sac, batch), (twin, other)):
        torch.manual_seed(0)
        found.append(each.update(given, 0).td_errors)
    assert torch.equal(*found)
    assert_same(everything(sac), everything(twin))


def spoiled(field: str, value: float) -> Callable[[Sequences], Sequences]:
    def spoil(batch: Sequences) -> Sequences:
        wrong = getattr(batch, field).clone()
        wrong[1] = value
        return replace(batch, **{field: wrong})

    return spoil


@pytest.mark.parametrize("shape", [SHAPE, RECURRENT], ids=["none", "lstm"])
@pytest.mark.parametrize(
    "spoil",
    [
        spoiled("rewards", math.nan),
        spoiled("rewards", math.inf),
        spoiled("rewards", 3e38),
        spoiled("observations", math.nan),
        spoiled("observations", math.inf),
        spoiled("actions", math.nan),
        spoiled("weights", math.nan),
        spoiled("weights", 1e38),
    ],
)
def test_a_batch_that_is_not_finite_changes_nothing(
    spoil: Callable[[Sequences], Sequences], shape: SACShape
) -> None:
    sac = agent(shape)
    sac.update(sequences(0, sac), 0)
    before = everything(sac)
    with pytest.raises(SkippedBatch, match="nan|inf"):
        sac.update(spoil(sequences(1, sac)), 1)
    assert_same(everything(sac), before)
    sac.update(sequences(2, sac), 1)
    after = everything(sac)
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"actor", "critic", "target", "log_alpha"}


def test_a_policy_that_is_not_finite_keeps_the_critics_from_their_step() -> None:
    """Its gradient is looked at even where the critics' own is sound."""
    sac = agent()
    with torch.no_grad():
        sac.actor.named(sac.actor.flat.vector)["actor.heads.log_std.bias"].fill_(math.nan)
    batch = sequences(0, sac)
    batch.terminal[:, 1] = batch.ends[:, 1] = True  # no bootstrap: discount 0 times NaN is NaN
    before = everything(sac)
    with pytest.raises(SkippedBatch, match="actor_loss nan"):
        sac.update(batch, 0)
    for name, tensor in everything(sac).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_warming_up_learns_nothing_and_draws_nothing() -> None:
    sac = agent(RECURRENT, burn_in=1)
    sac.update(sequences(0, sac), 0)
    before, state = everything(sac), torch.get_rng_state()
    sac.warm_up(sequences(1, sac))
    assert_same(everything(sac), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [SHAPE, RECURRENT], ids=["none", "lstm"])
def test_a_resumed_agent_goes_on_bit_for_bit(shape: SACShape) -> None:
    settings = {"burn_in": 1, "unroll": 2, "schedule": "cosine", "schedule_updates": 4}
    whole, resumed = agent(shape, **settings), agent(shape, seed=9, **settings)
    for update in range(2):
        whole.update(sequences(update, whole), update)
    model, optimizer = (
        {name: tensor.clone() for name, tensor in tensors.items()}
        for tensors in (whole.model_tensors(), whole.optimizer_tensors())
    )
    resumed.load_tensors(model, optimizer)
    for update in (2, 3):
        for sac in (whole, resumed):
            torch.manual_seed(update)
            sac.update(sequences(update, sac), update)
    assert_same(everything(resumed), everything(whole))


def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing() -> None:
    sac, other = agent(), agent(replace(SHAPE, hidden=15))
    before = everything(sac)
    with pytest.raises(ValueError, match=r"model does not fit .* at actor.heads.hidden.0.bias"):
        sac.load_tensors(other.model_tensors(), other.optimizer_tensors())
    with pytest.raises(ValueError, match=r"optimizer does not fit .* at critic.step"):
        sac.load_tensors(
            sac.model_tensors(),
            {n: t for n, t in sac.optimizer_tensors().items() if n != "critic.step"},
        )
    assert_same(everything(sac), before)


def test_what_is_published_is_the_actor_in_its_own_order() -> None:
    sac = agent(RECURRENT)
    sac.update(sequences(0, sac), 0)
    actor, tensors = build_actor(RECURRENT), sac.model_tensors()
    actor.load_state_dict({n: tensors[f"actor.{n}"] for n in actor.state_dict()})
    assert torch.equal(sac.published, parameters_to_vector(actor.parameters()))
    kept = sac.published
    twin = kept.clone()
    sac.update(sequences(1, sac), 1)
    assert torch.equal(kept, twin)


def test_sequences_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sequences of 2 rows: .* is 5"):
        agent(burn_in=2, unroll=2).update(sequences(0, agent()), 0)


def test_bfloat16_moves_every_part_much_as_float32_does() -> None:
    exact, rounded = agent(RECURRENT, unroll=3), agent(RECURRENT, unroll=3, bfloat16=True)
    before, found = everything(rounded), []
    for sac in (exact, rounded):
        torch.manual_seed(1)
        found.append(sac.update(sequences(0, sac, 64), 0))
    assert found[1].loss == pytest.approx(found[0].loss, rel=0.05)
    assert found[1].td_errors.dtype == torch.float32
    for name, tensor in rounded.model_tensors().items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "dropout"])
def test_critics_are_normalized_as_asked(normalization: str) -> None:
    shape = replace(SHAPE, normalization=normalization, dropout=0.5)  # type: ignore[arg-type]
    critic, known = agent(shape).critic.flat.network, torch.rand(5, 8 + 32)
    first, second = (critic(known, torch.zeros(5, 2)) for _ in range(2))
    assert torch.equal(first, second) == (normalization != "dropout")
    kinds = [type(layer).__name__ for layer in critic.values[0]]
    assert kinds.count("LayerNorm") == (0 if normalization == "none" else 2)


def test_rates_are_the_schedules_and_each_parts_own() -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""
    sac = agent(schedule="step", schedule_updates=10, schedule_factor=0.1, adam_epsilon=1e-12)
    before = everything(sac)
    sac.update(sequences(0, sac), 10)
    after = everything(sac)
    assert sac.learning_rate(10) == pytest.approx(1e-4)
    for name, rate in (
        ("critic.values.0.4.bias", 1e-4),
        ("actor.heads.mean.bias", 2e-4),
        ("log_alpha", 3e-4),
    ):
        moved = (after[name] - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=1e-7)


def test_the_temperature_falls_while_the_policy_is_freer_than_asked_and_rises_else() -> None:
    for target_entropy, grows in ((-50.0, False), (50.0, True)):
        sac = agent(target_entropy=target_entropy)
        found = [sac.update(sequences(i, sac), i).others["alpha"] for i in range(5)]
        assert found == sorted(found, reverse=not grows)
        assert len(set(found)) == 5


def moments_are_there(sac: SAC) -> list[int]:
    return [m.data_ptr() for t in (sac.actor, sac.critic) for m in t.optimizer.moments.values()]


def test_the_optimizers_have_all_their_memory_from_the_start() -> None:
    sac = agent()
    places = moments_are_there(sac)
    sac.update(sequences(0, sac), 0)
    assert moments_are_there(sac) == places
