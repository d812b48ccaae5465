"""Admission: the numbers add up, and what does not fit is refused with them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rl_cluster.agents.flat import num_parameters
from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.learner import build_network
from rl_cluster.machine import Machine
from rl_cluster.preparation import prepare, what_would_run
from rl_cluster.supervision.admission import (
    PROCESS_BYTES,
    RAY_BYTES,
    STORE_MARGIN_BYTES,
    WEIGHT_VERSIONS,
    AdmissionError,
    TaskDemand,
    admit,
    fit,
    gpu_share,
    most_at_once,
)

PONG = TaskDemand("Pong", 300_000, 3_000, 6, 7_000_000, 4)
BREAKOUT = replace(PONG, name="Breakout", blocks=1_000)
LARGE = Machine(2, 10**12, 10**12)


def demands() -> st.SearchStrategy[list[TaskDemand]]:
    sizes = st.integers(1, 10**6)
    demand = st.builds(TaskDemand, st.text(), sizes, sizes, sizes, sizes, st.integers(1, 50))
    return st.lists(demand, min_size=1, max_size=4)


def test_a_task_fills_the_store_with_its_blocks_those_on_their_way_and_its_weights() -> None:
    assert PONG.store_bytes == 3_006 * 300_000 + WEIGHT_VERSIONS * 7_000_000


@given(demands())
def test_what_is_admitted_is_the_sum_of_its_parts(tasks: list[TaskDemand]) -> None:
    admission = admit(tasks, replace(LARGE, memory_bytes=10**18, shared_memory_bytes=10**18))
    store = STORE_MARGIN_BYTES + sum(task.store_bytes for task in tasks)
    assert admission.object_store_bytes == store
    processes = sum(task.processes for task in tasks)
    assert admission.host_bytes == store + processes * PROCESS_BYTES + RAY_BYTES


@given(demands())
def test_a_run_is_admitted_to_the_byte(tasks: list[TaskDemand]) -> None:
    wide = replace(LARGE, memory_bytes=10**18, shared_memory_bytes=10**18)
    needed = admit(tasks, wide)
    exact = Machine(1, needed.host_bytes, needed.object_store_bytes)
    assert admit(tasks, exact) == needed
    for name in ("memory_bytes", "shared_memory_bytes"):
        with pytest.raises(AdmissionError):
            admit(tasks, replace(exact, **{name: getattr(exact, name) - 1}))


def test_too_little_shared_memory_is_refused_with_the_numbers_and_the_way_out() -> None:
    with pytest.raises(AdmissionError) as caught:
        admit([PONG, BREAKOUT], replace(LARGE, shared_memory_bytes=1_000_000_000))
    said = str(caught.value)
    assert "needs 1.46 GB and /dev/shm has 1.00 GB free" in said
    assert "Pong: 3000 blocks × 300,000 bytes = 0.90 GB of replay" in said
    assert "Breakout: 1000 blocks × 300,000 bytes = 0.30 GB of replay" in said
    assert "lower replay.capacity_transitions or the number of tasks, or enlarge it" in said


def test_too_little_memory_is_refused_with_the_numbers_and_the_way_out() -> None:
    with pytest.raises(AdmissionError) as caught:
        admit([PONG, BREAKOUT], replace(LARGE, memory_bytes=4_000_000_000))
    said = str(caught.value)
    assert "the run needs 5.26 GB and 4.00 GB are available" in said
    assert "Pong: 3000 blocks × 300,000 bytes = 0.90 GB of replay" in said
    assert "8 workers × 0.35 GB" in said
    assert "lower replay.capacity_transitions or the number of tasks" in said


# Fitted to the machine


def kept(demands: list[TaskDemand], share: float) -> list[TaskDemand]:
    """With a share of their replay, as `prepare` cuts them."""
    return [replace(d, blocks=int(d.blocks * share)) for d in demands]


def size(demand: TaskDemand) -> int:
    return demand.store_bytes


machines = st.builds(
    Machine, st.just(8), st.integers(3 * 10**9, 10**13), st.integers(3 * 10**8, 10**13)
)


@example([PONG, replace(PONG, processes=9), PONG], replace(LARGE, memory_bytes=8 * 10**9), 2)
@given(demands(), machines, st.integers(1, 10))
def test_whichever_tasks_run_together_fit_with_the_share_that_they_were_given(
    tasks: list[TaskDemand], machine: Machine, wanted: int
) -> None:
    try:
        games, share = fit(tasks, machine, wanted)
    except AdmissionError:
        with pytest.raises(AdmissionError):  # one at least, with all of its replay
            for task in tasks:
                admit([task], machine)
        return
    assert 1 <= games <= min(wanted, len(tasks)) and 0.1 <= share <= 1
    for together in itertools.combinations(tasks, games):
        admit(kept(list(together), share), machine)


def test_where_all_fits_nothing_is_taken_away() -> None:
    assert fit([PONG, BREAKOUT], LARGE, 2) == (2, 1.0)
    assert fit([PONG, BREAKOUT], LARGE, 8) == (2, 1.0)
    assert fit([PONG, BREAKOUT], LARGE, 1) == (1, 1.0)


def test_replay_shrinks_before_fewer_tasks_run() -> None:
    """Ten games on a machine with room for half of their replay still run all at once."""
    full = 10 * (PONG.blocks * PONG.block_bytes)
    fixed = 10 * (PONG.store_bytes - PONG.blocks * PONG.block_bytes) + STORE_MARGIN_BYTES
    machine = replace(LARGE, shared_memory_bytes=fixed + full // 2)
    assert fit([PONG] * 10, machine, 10) == (10, pytest.approx(0.5))


def test_fewer_tasks_run_where_a_tenth_of_their_replay_would_not_fit() -> None:
    ten = 10 * (PONG.processes * PROCESS_BYTES) + RAY_BYTES
    games, share = fit([PONG] * 10, replace(LARGE, memory_bytes=ten), 10)
    assert games == 9 and share >= 0.1


def test_one_that_never_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(AdmissionError, match="Pong: 3000 blocks"):
        fit([PONG, BREAKOUT], replace(LARGE, memory_bytes=2_000_000_000), 2)


@given(demands(), machines, st.integers(1, 20))
def test_the_most_that_fit_at_once_fit_and_one_more_does_not(
    tasks: list[TaskDemand], machine: Machine, processes: int
) -> None:
    tasks = [replace(task, processes=processes) for task in tasks]
    most = most_at_once(tasks, machine)
    largest = sorted(tasks, key=size, reverse=True)
    assert 1 <= most <= len(tasks)
    if most > 1:
        admit(largest[:most], machine)
    if most < len(tasks):
        with pytest.raises(AdmissionError):
            admit(largest[: most + 1], machine)


def catch(capacity: int = 1_000, **rollout: int) -> RunConfig:
    return from_mapping(
        {
            "tasks": {"Catch": {}},
            "defaults": {
                "env": {"entry": "envs.catch:make"},
                "rollout": {"environments": 4, "inference_batch": 2, **rollout},
                "replay": {"capacity_transitions": capacity, "min_transitions": 100},
                "agent": {"frame_stack": 4, "n_step": 3, "conv_channels": [4], "hidden": 8},
            },
        }
    )


def test_bytes_are_those_of_a_block_as_the_rollouts_make_it() -> None:
    (demand,) = prepare(catch(block_length=32)).demands
    rows = 3 + 32 + 3  # context, core, tail
    frame, beside = 84 * 84, 4 + 4 + 1 + 1 + 1 + 4
    assert demand.block_bytes == rows * (frame + beside)
    assert demand.blocks == 32  # 1,000 transitions in blocks of 32, rounded up
    assert demand.blocks * 32 >= 1_000


def test_weights_are_measured_on_the_network_that_will_be_trained() -> None:
    config = catch()
    prepared = prepare(config)
    network = build_network(config.tasks["Catch"].agent, prepared.specs["Catch"])
    assert prepared.demands[0].weights_bytes == 4 * num_parameters(network)


def test_more_actors_mean_more_processes_and_more_blocks_on_their_way() -> None:
    one, three = (prepare(catch(actors=n)).demands[0] for n in (1, 3))
    assert three.processes == one.processes + 2
    assert three.blocks_in_flight > one.blocks_in_flight


def test_a_prepared_run_knows_its_environment() -> None:
    spec = prepare(catch()).specs["Catch"]
    assert (spec.obs_shape, spec.obs_dtype, spec.num_actions) == ((84, 84), np.uint8, 3)
    assert spec.frame_skip == 1


def test_a_replay_that_cannot_fit_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdmissionError, match=r"Catch: .* blocks × 268,6\d\d bytes = .* GB"):
        prepare(catch(capacity=10**10))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_is_refused_before_anything_starts() -> None:
    config = catch()
    task = config.tasks["Catch"]
    agent = replace(task.agent, conv_channels=(1, 2, 3, 4))
    with pytest.raises(ConfigError, match="conv_channels"):
        prepare(replace(config, tasks={"Catch": replace(task, agent=agent)}))


def test_what_would_run_tells_the_machine_s_decisions_and_the_memory() -> None:
    rows = {name: rest for name, *rest in what_would_run(catch())}
    assert rows["tasks.Catch.env.name"] == ["", "Catch", "the task's name"]
    text, same, reason = rows["tasks.Catch.replay"]
    assert text == same == "0.01 GB"
    assert reason == "32 blocks of 268,698 bytes, measured"
    assert rows["object store"][0].endswith("GB")


@given(st.integers(1, 50), st.integers(1, 16))
def test_all_tasks_have_their_share_of_a_gpu_at_once_and_none_spans_two(
    tasks: int, gpus: int
) -> None:
    share = gpu_share(tasks, gpus)
    assert 0 < share <= 1
    assert gpus * round(1 / share) >= tasks
    assert gpus * (round(1 / share) - 1) < tasks, "no smaller than it has to be"


def test_where_there_is_no_gpu_none_is_held() -> None:
    assert gpu_share(3, 0) == 0.0
