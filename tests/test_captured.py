"""The GPU's path, as far as a CPU can go: nothing waits for the device, and inputs lie still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learning_samples import IMAGE, SETTINGS, agent, assert_same, everything, network, transitions

from rl_cluster.agents.captured import Captured, Inputs, Recorded
from rl_cluster.agents.dqn import DQN, Transitions
from rl_cluster.agents.update import PendingUpdate

CPU = torch.device("cpu")


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_update_never_waits_for_its_device(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    """A meta tensor has a shape and no value: whoever asks for one, or mixes devices, fails."""
    seen: list[torch.device] = []

    def fused(*lists: list[torch.Tensor], **named: Any) -> None:
        given = [tensor for tensors in lists for tensor in tensors]
        given += [value for value in named.values() if isinstance(value, torch.Tensor)]
        seen.extend(tensor.device for tensor in given)

    monkeypatch.setattr(torch, "_fused_adam_", fused)  # it knows no meta tensors
    settings = SETTINGS.__class__(**{**vars(SETTINGS), "bfloat16": True})
    dqn = DQN(network(IMAGE).to("meta"), network(IMAGE).to("meta"), settings, 1, micro_batch)
    on_meta = Transitions(*(t.to("meta") for t in vars(transitions(0, IMAGE)).values()))
    found = dqn._learn(on_meta)
    assert found.shape == (3 + 6,)
    assert len(seen) == 5 + 3  # one vector each, and step size, divisor, refusal: no numbers
    assert {device.type for device in seen} == {"meta"}


def test_inputs_hold_each_batch_in_the_same_memory() -> None:
    inputs = Inputs(transitions(0, IMAGE), CPU)
    memory = [tensor.data_ptr() for tensor in vars(inputs.batch).values()]
    for seed in range(3):
        batch = transitions(seed, IMAGE)
        inputs.take(batch)
        for field in fields(batch):
            held, wanted = getattr(inputs.batch, field.name), getattr(batch, field.name)
            assert held.dtype == wanted.dtype
            assert torch.equal(held, wanted)
    assert [tensor.data_ptr() for tensor in vars(inputs.batch).values()] == memory
    with pytest.raises(RuntimeError):
        inputs.take(transitions(0, IMAGE, size=7))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """CUDA graphs that compute on the CPU: what is captured runs again at each replay."""
    state: dict[str, Any] = {"replays": 0, "modes": []}

    class Graph:
        again: Callable[[], None]

        def replay(self) -> None:
            state["replays"] += 1
            self.again()

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        state["modes"].append(capture_error_mode)
        state["graph"] = graph
        yield

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    idle = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, fake in {
        "CUDAGraph": Graph,
        "graph": capture,
        "Stream": lambda: idle,
        "stream": stream,
        "current_stream": lambda: idle,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return state


def captured(dqn: DQN, graphs: dict[str, Any]) -> Captured:
    """The agent's step as a graph whose replay writes where the capture wrote."""
    made = Captured(dqn._learn, CPU)
    record = made._record

    def record_and_wire(batch: Transitions) -> Recorded:
        recorded = record(batch)
        graph: Any = recorded.graph
        graph.again = lambda: recorded.found.copy_(dqn._learn(recorded.inputs.batch))
        return recorded

    made._record = record_and_wire  # type: ignore[method-assign]
    return made


def test_a_captured_agent_learns_as_one_that_is_not(graphs: dict[str, Any]) -> None:
    steady, own = agent(IMAGE, target_period=2), agent(IMAGE, target_period=2)
    own._step = captured(own, graphs)
    for step in range(5):
        batch = transitions(step, IMAGE)
        wanted, found = steady.update(batch, step), own.update(batch, step)
        assert torch.equal(wanted.td_errors, found.td_errors)
        assert wanted.loss == found.loss
    assert_same(everything(own), everything(steady))
    assert graphs["replays"] == 5
    assert graphs["modes"] == ["thread_local"]  # other threads take memory meanwhile


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_batch_of_another_size_is_captured_anew_and_learned_from_as_well(
    graphs: dict[str, Any], micro_batch: int | None
) -> None:
    steady, own = (agent(IMAGE, micro_batch=micro_batch) for _ in range(2))
    own._step = captured(own, graphs)
    sizes = [6, 6, 9, 9, 3, 6]
    for step, size in enumerate(sizes):
        batch = transitions(step, IMAGE, size)
        wanted, found = steady.update(batch, step), own.update(batch, step)
        assert torch.equal(wanted.td_errors, found.td_errors)
    assert_same(everything(own), everything(steady))
    assert graphs["replays"] == len(sizes)
    assert len(graphs["modes"]) == 4  # 6, 9, 3 and 6 again: one is held at a time


def test_a_graph_that_found_no_memory_is_captured_at_the_next_call(graphs: dict[str, Any]) -> None:
    steady, own = agent(IMAGE), agent(IMAGE)
    own._step = captured(own, graphs)
    record = own._step._record

    def full(batch: Transitions) -> Recorded:
        own._step._record = record  # type: ignore[method-assign, union-attr]
        raise torch.OutOfMemoryError("device is full")

    own._step._record = full  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        own.update(transitions(0, IMAGE), 0)
    for each in (own, steady):
        each.update(transitions(0, IMAGE), 0)
    assert_same(everything(own), everything(steady))


def test_warming_up_and_capturing_change_nothing(graphs: dict[str, Any]) -> None:
    own = agent(IMAGE)
    before = everything(own)
    own.optimizer.learning_rate.fill_(1e-3)
    captured(own, graphs)._record(transitions(0, IMAGE))
    assert_same(everything(own), before)


def test_a_checkpoint_loaded_after_the_capture_is_what_the_graph_goes_on_from(
    graphs: dict[str, Any],
) -> None:
    own, other = agent(IMAGE, seed=1), agent(IMAGE, seed=2)
    own._step = captured(own, graphs)
    own.update(transitions(0, IMAGE), 0)
    places = [own.online.vector.data_ptr(), own.optimizer.steps.data_ptr()]
    own.load_tensors(other.model_tensors(), other.optimizer_tensors())
    assert [own.online.vector.data_ptr(), own.optimizer.steps.data_ptr()] == places
    own.update(transitions(1, IMAGE), 0)
    other.update(transitions(1, IMAGE), 0)
    assert_same(everything(own), everything(other))


def test_a_result_on_a_cpu_is_there_at_once() -> None:
    found = torch.tensor([0.5, 1.0, 2.0, 3.0])
    update = PendingUpdate(found).result()
    assert (update.loss, update.q_mean, update.gradient_norm) == (0.5, 1.0, 2.0)
    assert update.td_errors.tolist() == [3.0]
