"""One update of DQN: equal to the formulas, whole or not at all, and the same after a resume."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning_samples import (
    IMAGE,
    SETTINGS,
    VECTOR,
    agent,
    assert_same,
    everything,
    network,
    transitions,
)
from naive_replay import unhurried

from rl_cluster.agents.dqn import DQN, Transitions
from rl_cluster.agents.schedule import scheduled
from rl_cluster.agents.update import SkippedBatch

BETA_1, BETA_2 = 0.9, 0.999
Tensors = dict[str, torch.Tensor]


class Reference:
    """Double DQN and Adam (Kingma & Ba 2015, algorithm 1) written out, one transition at a time."""

    def __init__(self, dqn: DQN) -> None:
        self.online, self.target = (
            copy.deepcopy(dqn.online.network),
            copy.deepcopy(dqn.target.network),
        )
        self.settings, self.steps = dqn.settings, 0
        self.first = [torch.zeros_like(p) for p in self.online.parameters()]
        self.second = [torch.zeros_like(p) for p in self.online.parameters()]

    def update(self, batch: Transitions) -> float:
        loss = torch.zeros(())
        for i in range(len(batch.a_tm1)):
            error = self._target(batch, i) - self.online(batch.s_tm1[i : i + 1])[0, batch.a_tm1[i]]
            size, delta = error.abs(), self.settings.huber_delta
            quadratic = bool(size <= delta)
            each = 0.5 * error**2 if quadratic else delta * (size - 0.5 * delta)
            loss = loss + batch.weights[i] * each
        loss = loss / len(batch.a_tm1)
        self._step(torch.autograd.grad(loss, list(self.online.parameters())))
        return loss.item()

    def _target(self, batch: Transitions, i: int) -> torch.Tensor:
        with torch.no_grad():
            values = self.target(batch.s_t[i : i + 1])[0]
            chooser = self.online if self.settings.double else self.target
            best = int(chooser(batch.s_t[i : i + 1])[0].argmax())
        return batch.r_t[i] + batch.discount_t[i] * values[best]

    def _step(self, gradients: tuple[torch.Tensor, ...]) -> None:
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
        scale = min(1.0, self.settings.max_gradient_norm / norm)
        rate = scheduled(self.settings.learning_rate, self.settings, self.steps)
        self.steps += 1
        with torch.no_grad():
            for p, g, m, v in zip(
                self.online.parameters(), gradients, self.first, self.second, strict=True
            ):
                m.mul_(BETA_1).add_((1 - BETA_1) * scale * g)
                v.mul_(BETA_2).add_((1 - BETA_2) * (scale * g) ** 2)
                m_hat = m / (1 - BETA_1**self.steps)
                v_hat = v / (1 - BETA_2**self.steps)
                p -= rate * m_hat / (v_hat.sqrt() + self.settings.adam_epsilon)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"double": False},
        {"huber_delta": 0.1},
        {"max_gradient_norm": 0.05},
        {"schedule": "cosine"},
        {"threads": 2},
        {"threads": 3, "max_gradient_norm": 0.05},
        {"micro_batch": 4},
        {"micro_batch": 1, "max_gradient_norm": 0.05},
        {"micro_batch": 4, "threads": 2},
    ],
    ids=str,
)
def test_updates_are_those_of_the_written_out_reference(
    shape: tuple[int, ...], settings: dict[str, object]
) -> None:
    dqn = agent(shape, **settings)
    with torch.no_grad():  # a target of its own, or double and single could not differ
        for parameter in dqn.target.network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    reference = Reference(dqn)
    for update in range(3):
        batch = transitions(update, shape)
        found = dqn.update(batch, update)
        assert found.loss == pytest.approx(reference.update(batch), rel=1e-5)
    for own, other in zip(
        dqn.online.network.parameters(), reference.online.parameters(), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
@pytest.mark.parametrize("size", [6, 7])
def test_threads_share_one_update_and_change_nothing_in_it(
    shape: tuple[int, ...], size: int
) -> None:
    alone, together = agent(shape), agent(shape, threads=3)
    for step in range(3):
        batch = transitions(step, shape, size)
        wanted, found = (dqn.update(batch, step) for dqn in (alone, together))
        torch.testing.assert_close(found.td_errors, wanted.td_errors)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-4)
        assert found.q_mean == pytest.approx(wanted.q_mean, rel=1e-4)
        assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-4)
    torch.testing.assert_close(together.online.vector, alone.online.vector)


def test_threads_give_the_same_bits_every_time() -> None:
    first, second = (agent(IMAGE, threads=3) for _ in range(2))
    for step in range(5):
        for dqn in (first, second):
            dqn.update(transitions(step, IMAGE), step)
    assert_same(everything(first), everything(second))


def test_a_batch_smaller_than_the_team_is_learned_from_as_well() -> None:
    alone, together = agent(), agent(threads=3)
    wanted, found = (dqn.update(transitions(0, size=2), 0) for dqn in (alone, together))
    torch.testing.assert_close(found.td_errors, wanted.td_errors)
    torch.testing.assert_close(together.online.vector, alone.online.vector)


@given(
    size=st.integers(1, 100),
    micro_batch=st.integers(1, 110),
    threads=st.sampled_from([1, 2]),
    max_norm=st.sampled_from([0.05, 10.0]),
    shape=st.sampled_from([IMAGE, VECTOR]),
)
@unhurried
def test_an_update_in_many_passes_is_the_update_of_the_whole_batch(
    size: int, micro_batch: int, threads: int, max_norm: float, shape: tuple[int, ...]
) -> None:
    whole = agent(shape, max_gradient_norm=max_norm)
    parts = agent(shape, max_gradient_norm=max_norm, micro_batch=micro_batch, threads=threads)
    for step in range(2):
        batch = transitions(step, shape, size)
        wanted, found = (dqn.update(batch, step) for dqn in (whole, parts))
        torch.testing.assert_close(found.td_errors, wanted.td_errors)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert found.q_mean == pytest.approx(wanted.q_mean, rel=1e-4, abs=1e-6)
        assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-4)
    torch.testing.assert_close(parts.online.vector, whole.online.vector, rtol=1e-4, atol=2e-6)
    assert parts.optimizer.steps.item() == 2


@pytest.mark.parametrize(
    ("size", "micro_batch", "rows"),
    [(6, None, [6]), (6, 6, [6]), (6, 9, [6]), (6, 3, [3, 3]), (7, 3, [3, 2, 2]), (5, 4, [3, 2])],
)
def test_no_pass_is_larger_than_was_said_and_none_is_needless(
    size: int, micro_batch: int | None, rows: list[int]
) -> None:
    seen: list[int] = []
    dqn = agent(micro_batch=micro_batch)
    dqn.target.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    dqn.update(transitions(0, size=size), 0)
    assert seen == rows


def allocated_at_most(work: Callable[[], object]) -> int:
    """Bytes that were allocated at once, at most, beyond those at the start."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def test_the_memory_of_an_update_is_that_of_one_pass() -> None:
    """Rows in a pass count, rows in the batch hardly: their TD errors are 4 bytes each."""
    shape, peaks = (4, 36, 36), {}
    for size, micro_batch in ((256, None), (256, 32), (32, None)):
        dqn, batch = agent(shape, micro_batch=micro_batch), transitions(0, shape, size)
        dqn.update(batch, 0)
        peaks[size, micro_batch] = allocated_at_most(lambda: dqn.update(batch, 1))  # noqa: B023
    assert peaks[256, None] > 4 * peaks[32, None]
    assert peaks[256, 32] < 1.2 * peaks[32, None]


def test_a_bad_row_in_any_pass_keeps_the_whole_batch_from_a_step() -> None:
    dqn, untouched = agent(micro_batch=2), agent(micro_batch=2)
    before = everything(dqn)
    for row in range(6):
        bad = transitions(1)
        bad.r_t[row] = math.nan
        with pytest.raises(SkippedBatch, match="loss nan"):
            dqn.update(bad, 0)
    assert_same(everything(dqn), before)
    for each in (dqn, untouched):
        each.update(transitions(2), 0)
    assert_same(everything(dqn), everything(untouched))


@pytest.mark.parametrize("target", ["period", "averaging"])
def test_warming_up_learns_nothing(target: str) -> None:
    dqn = agent(target=target, target_period=1, micro_batch=4)
    dqn.update(transitions(0), 0)
    before, batch, twin = everything(dqn), transitions(1), transitions(1)
    dqn.warm_up(batch)
    assert_same(everything(dqn), before)
    assert torch.equal(batch.weights, twin.weights)


def test_an_update_tells_what_it_found_before_it_moved() -> None:
    dqn, batch = agent(), transitions(0)
    values = dqn.online.network(batch.s_tm1).detach()
    best = dqn.online.network(batch.s_t).argmax(1, keepdim=True)
    bootstrap = dqn.target.network(batch.s_t).gather(1, best).squeeze(1)
    taken = values.gather(1, batch.a_tm1[:, None]).squeeze(1)
    wanted = batch.r_t + batch.discount_t * bootstrap - taken
    found = dqn.update(batch, 0)
    torch.testing.assert_close(found.td_errors, wanted.detach())
    assert not found.td_errors.requires_grad
    assert found.q_mean == pytest.approx(taken.mean().item(), rel=1e-5)


def test_the_optimizer_has_all_its_memory_from_the_start() -> None:
    dqn = agent(IMAGE)
    moments = list(dqn.optimizer.moments.values())
    assert all(moment.shape == dqn.online.vector.shape for moment in moments)
    assert all(not moment.any() for moment in moments)
    places = [moment.data_ptr() for moment in moments]
    dqn.update(transitions(0, IMAGE), 0)
    after = list(dqn.optimizer.moments.values())
    assert [moment.data_ptr() for moment in after] == places
    assert all(moment.any() for moment in after)


def test_the_target_is_a_copy_each_period_and_rests_between() -> None:
    dqn = agent(target="period", target_period=3)
    kept = copy.deepcopy(dqn.target.network.state_dict())
    for update in range(7):
        dqn.update(transitions(update), update)
        if (update + 1) % 3 == 0:
            kept = copy.deepcopy(dqn.online.network.state_dict())
        assert_same(dqn.target.network.state_dict(), kept)


def test_the_period_goes_on_where_it_was_after_a_resume() -> None:
    """The count of updates is the caller's: it comes from the checkpoint."""
    dqn = agent(target="period", target_period=3)
    before = copy.deepcopy(dqn.target.network.state_dict())
    dqn.update(transitions(0), updates=100)
    assert_same(dqn.target.network.state_dict(), before)
    dqn.update(transitions(1), updates=101)
    assert_same(dqn.target.network.state_dict(), dqn.online.network.state_dict())


def test_an_averaged_target_moves_its_share_of_the_way() -> None:
    dqn = agent(target="averaging", target_tau=0.1)
    for update in range(3):
        before = copy.deepcopy(dqn.target.network.state_dict())
        dqn.update(transitions(update), update)
        online = dqn.online.network.state_dict()
        for name, found in dqn.target.network.state_dict().items():
            torch.testing.assert_close(found, 0.9 * before[name] + 0.1 * online[name])


def test_the_target_starts_as_the_online_network_and_is_never_trained() -> None:
    dqn = agent()
    assert_same(dqn.target.network.state_dict(), dqn.online.network.state_dict())
    dqn.update(transitions(0), 0)
    assert [p.requires_grad or p.grad is not None for p in dqn.target.network.parameters()] == [
        False
    ] * 10


def test_a_constant_learning_rate_stays() -> None:
    rates = {scheduled(1e-3, SETTINGS, updates) for updates in (0, 1, 10, 10**9)}
    assert rates == {1e-3}


def test_a_cosine_falls_to_its_share_and_stays_there() -> None:
    """Loshchilov & Hutter 2017, equation 5, without restarts."""
    settings = replace(SETTINGS, schedule="cosine")
    rates = [scheduled(settings.learning_rate, settings, updates) for updates in range(11)]
    assert rates[0] == 1e-3
    assert rates[5] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[10] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)
    assert scheduled(settings.learning_rate, settings, 10**9) == rates[10]


def test_steps_drop_by_their_factor_each_period() -> None:
    settings = replace(SETTINGS, schedule="step")
    rates = [scheduled(settings.learning_rate, settings, updates) for updates in (0, 9, 10, 19, 20)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_the_scheduled_rate_is_the_one_that_is_used() -> None:
    """Adam's first step is as long as its rate, whatever the gradient (Kingma & Ba, section 2)."""
    for updates, wanted in ((0, 1e-3), (10, 1e-4), (20, 1e-5)):
        dqn = agent(schedule="step", adam_epsilon=1e-12)
        before = copy.deepcopy(dqn.online.network.advantage[-1].bias.detach())
        dqn.update(transitions(0), updates)
        moved = (dqn.online.network.advantage[-1].bias.detach() - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, wanted), rtol=1e-2, atol=1e-8)


def test_gradients_are_scaled_down_to_the_norm_allowed() -> None:
    free, clipped = agent(max_gradient_norm=1e9), agent(max_gradient_norm=0.01)
    norm = free.update(transitions(0), 0).gradient_norm
    assert norm > 0.01
    assert clipped.update(transitions(0), 0).gradient_norm == norm  # told as it was
    assert free.optimizer.moments["exp_avg"].norm().item() == pytest.approx(0.1 * norm, rel=1e-4)
    assert clipped.optimizer.moments["exp_avg"].norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("micro_batch", [None, 16])
@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_bfloat16_moves_every_parameter_much_as_float32_does(
    shape: tuple[int, ...], micro_batch: int | None
) -> None:
    exact, rounded = agent(shape), agent(shape, bfloat16=True, micro_batch=micro_batch)
    before = everything(rounded)
    wanted, found = (dqn.update(transitions(0, shape, 64), 0) for dqn in (exact, rounded))
    assert found.loss == pytest.approx(wanted.loss, rel=0.02)
    assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=0.1)
    assert found.td_errors.dtype == torch.float32
    for name, tensor in rounded.model_tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name]) == name.startswith("target.")


def poisoned(field: str, value: float) -> Callable[[Transitions], Transitions]:
    def poison(batch: Transitions) -> Transitions:
        wrong = getattr(batch, field).clone()
        wrong.view(-1)[1] = value
        return replace(batch, **{field: wrong})

    return poison


def overflowing(weight: float) -> Callable[[Transitions], Transitions]:
    def overflow(batch: Transitions) -> Transitions:
        return replace(batch, weights=torch.full_like(batch.weights, weight))

    return overflow


@pytest.mark.parametrize("target", ["period", "averaging"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (poisoned("r_t", math.nan), "nan|inf"),
        (poisoned("r_t", math.inf), "nan|inf"),
        (poisoned("r_t", -math.inf), "nan|inf"),
        (poisoned("discount_t", math.nan), "nan|inf"),
        (poisoned("weights", math.nan), "nan|inf"),
        (poisoned("s_tm1", math.inf), "nan|inf"),
        (poisoned("s_t", math.nan), "nan|inf"),
        (poisoned("r_t", 3e38), "loss inf"),
        (overflowing(1e30), "gradient norm inf"),
    ],
)
def test_a_batch_that_is_not_finite_changes_nothing_and_the_next_one_trains(
    spoil: Callable[[Transitions], Transitions], reason: str, target: str
) -> None:
    settings = {"target": target, "target_period": 1, "schedule": "cosine", "huber_delta": 3.0}
    dqn, untouched = agent(**settings), agent(**settings)
    for each in (dqn, untouched):
        each.update(transitions(0), 0)
    before = everything(dqn)
    for bad in (transitions(1), transitions(2)):
        with pytest.raises(SkippedBatch, match=reason):
            dqn.update(spoil(bad), 1)
        assert_same(everything(dqn), before)
    found, wanted = (each.update(transitions(3), 1) for each in (dqn, untouched))
    assert found.loss == wanted.loss
    assert_same(everything(dqn), everything(untouched))
    assert not torch.equal(everything(dqn)["online.value.2.bias"], before["online.value.2.bias"])


@pytest.mark.parametrize("part", [0, 5])
def test_one_bad_part_keeps_the_whole_team_from_a_step(part: int) -> None:
    dqn = agent(threads=2)
    dqn.update(transitions(0), 0)
    before, bad = everything(dqn), transitions(1)
    bad.r_t[part] = math.nan
    with pytest.raises(SkippedBatch, match="loss nan"):
        dqn.update(bad, 1)
    assert_same(everything(dqn), before)


def test_a_gradient_can_overflow_where_the_loss_does_not() -> None:
    """What the norm is looked at for."""
    dqn = agent()
    with pytest.raises(SkippedBatch, match=r"loss \d.*e\+\d+, gradient norm inf"):
        dqn.update(overflowing(1e30)(transitions(1)), 0)


def copied(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
@pytest.mark.parametrize("target", ["period", "averaging"])
@pytest.mark.parametrize("interrupted_after", [0, 1, 4])
def test_a_resumed_agent_learns_bit_for_bit_as_one_that_never_stopped(
    shape: tuple[int, ...], target: str, interrupted_after: int
) -> None:
    settings = {"target": target, "target_period": 3, "schedule": "cosine"}
    steady = agent(shape, **settings)
    interrupted = agent(shape, **settings)
    for update in range(7):
        if update == interrupted_after:
            model = copied(interrupted.model_tensors())
            optimizer = copied(interrupted.optimizer_tensors())
            interrupted = agent(shape, seed=99, **settings)
            interrupted.load_tensors(model, optimizer)
        for dqn in (steady, interrupted):
            dqn.update(transitions(update, shape), update)
    assert_same(everything(interrupted), everything(steady))


def test_loading_copies_so_that_training_leaves_the_checkpoint_alone() -> None:
    dqn = agent()
    dqn.update(transitions(0), 0)
    model, optimizer = copied(dqn.model_tensors()), copied(dqn.optimizer_tensors())
    kept = copied({**model, **optimizer})
    other = agent(seed=1)
    other.load_tensors(model, optimizer)
    other.update(transitions(1), 1)
    assert_same({**model, **optimizer}, kept)


def test_a_checkpoint_names_every_tensor_of_both_networks_and_of_adam() -> None:
    dqn = agent()
    names = [name for name, _ in dqn.online.network.named_parameters()]
    assert set(dqn.model_tensors()) == {f"{n}.{p}" for n in ("online", "target") for p in names}
    keys = ("exp_avg", "exp_avg_sq")
    assert set(dqn.optimizer_tensors()) == {"step"} | {f"{p}.{key}" for p in names for key in keys}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_shape(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


def same(tensors: Tensors) -> Tensors:
    return tensors


@pytest.mark.parametrize(
    ("spoil_model", "spoil_optimizer", "named"),
    [
        (with_shape("online.value.2.bias", 2), same, r"online.value.2.bias.*\(2,\).*\(1,"),
        (without("target.value.0.bias"), same, "model.*at target.value.0.bias.*has nothing"),
        (with_shape("online.extra", 1), same, "model.*at online.extra.*expected nothing"),
        (same, without("value.0.bias.exp_avg"), "optimizer.*at value.0.bias.exp_avg"),
        (same, with_shape("value.0.bias.exp_avg_sq", 3), "optimizer.*at value.0.bias.exp_avg_sq"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_changes(
    spoil_model: Callable[[Tensors], Tensors],
    spoil_optimizer: Callable[[Tensors], Tensors],
    named: str,
) -> None:
    saved, dqn = agent(seed=1), agent()
    before = everything(dqn)
    model, optimizer = saved.model_tensors(), saved.optimizer_tensors()
    with pytest.raises(ValueError, match=f"{named}.*configuration that it was made with"):
        dqn.load_tensors(spoil_model(model), spoil_optimizer(optimizer))
    assert_same(everything(dqn), before)


def test_a_checkpoint_of_another_architecture_is_refused_and_nothing_changes() -> None:
    dqn, wider = agent(), agent(hidden=9)
    single = DQN(network(dueling=False), network(dueling=False), SETTINGS)
    before = everything(dqn)
    for other in (wider, single):
        with pytest.raises(ValueError, match="does not fit this configuration"):
            dqn.load_tensors(other.model_tensors(), other.optimizer_tensors())
    assert_same(everything(dqn), before)
