"""GPU memory: waiting for it, the stated fallback, taking it by allocating, and how much it is."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_samples import assert_same, everything

from rl_cluster import gpu_memory
from rl_cluster.agents.dqn import DQN
from rl_cluster.config import AgentConfig, LearnerConfig, ReplayConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.gpu_memory import GpuMemoryError, Need, Reserved
from rl_cluster.learner import build_agent

CPU = torch.device("cpu")
IMAGES = EnvironmentSpec((44, 44), np.dtype(np.uint8), 6, 4)
VECTORS = EnvironmentSpec((200,), np.dtype(np.float32), 6, 4)
WANTED, FALLBACK = Need(None, 100), Need(8, 40)


class Held:
    """Something that memory is taken by."""


@dataclass
class Device:
    """A GPU that others use: its free bytes at each look, and who is faster than we are."""

    free: list[int]
    snatched: int = 0
    made: list[int | None] = field(default_factory=list)
    slept_s: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    lost: list[weakref.ref[Held]] = field(default_factory=list)

    def free_bytes(self) -> int:
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def make(self, micro_batch: int | None) -> Held:
        self.made.append(micro_batch)
        held = Held()
        if self.snatched > 0:
            self.snatched -= 1
            self.lost.append(weakref.ref(held))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return held

    def sleep(self, pause_s: float) -> None:
        assert all(lost() is None for lost in self.lost), "memory is held while waiting"
        self.slept_s.append(pause_s)

    def reserve(
        self, fallback: Need | None = None, wait_s: float = 10.0, poll_s: float = 3.0
    ) -> Reserved[Held]:
        return gpu_memory.reserve(
            WANTED,
            fallback,
            self.make,
            self.free_bytes,
            wait_s=wait_s,
            poll_s=poll_s,
            sleep=self.sleep,
            say=self.said.append,
        )


def test_where_there_is_room_nothing_is_waited_for() -> None:
    device = Device([100])
    found = device.reserve()
    assert (found.micro_batch, found.waited_s, found.reason) == (None, 0.0, None)
    assert (device.made, device.slept_s, device.said) == ([None], [], [])


def test_memory_is_taken_as_soon_as_a_look_finds_it_free() -> None:
    device = Device([10, 99, 100])
    found = device.reserve(FALLBACK)
    assert (found.micro_batch, found.waited_s, found.reason) == (None, 6.0, None)
    assert device.made == [None]
    assert device.slept_s == [3.0, 3.0]
    assert len(device.said) == 2
    assert "0.00 GB needed" in device.said[0] and "3 of 10 s waited" in device.said[1]


def test_who_is_too_late_lets_go_of_everything_and_waits_again() -> None:
    """L12: to wait for free memory and then to allocate is a race."""
    device = Device([100], snatched=2)
    found = device.reserve()
    assert device.made == [None] * 3
    assert found.waited_s == 6.0
    assert all("gone when it was to be taken" in text for text in device.said)


def test_at_the_timeout_the_fallback_is_taken_and_says_why() -> None:
    device = Device([50])
    found = device.reserve(FALLBACK)
    assert (found.micro_batch, found.waited_s) == (8, 10.0)
    assert device.made == [8]
    assert device.slept_s == [3.0, 3.0, 3.0, 1.0]
    assert found.reason is not None
    assert "needed" in found.reason and "after 10 s of waiting" in found.reason


@pytest.mark.parametrize(
    ("fallback", "free", "snatched", "made"),
    [
        (None, 99, 0, []),
        (FALLBACK, 39, 0, []),
        (FALLBACK, 50, 1, [8]),
        (None, 100, 99, [None] * 5),
        (FALLBACK, 100, 99, [None] * 5 + [8]),
    ],
)
def test_without_room_for_either_the_error_has_the_numbers_and_nothing_is_held(
    fallback: Need | None, free: int, snatched: int, made: list[int | None]
) -> None:
    device = Device([free], snatched=snatched)
    with pytest.raises(GpuMemoryError, match=r"GB needed, .* GB free.*after 10 s.*gpu_wait_s"):
        device.reserve(fallback)
    assert device.made == made
    assert all(lost() is None for lost in device.lost)


def test_sizes_are_told_in_gigabytes() -> None:
    with pytest.raises(GpuMemoryError, match=r"^3.25 GB needed, 1.50 GB free after 0 s"):
        gpu_memory.reserve(
            Need(None, 3_250_000_000),
            None,
            lambda micro_batch: Held(),
            lambda: 1_500_000_000,
            wait_s=0.0,
            poll_s=1.0,
            sleep=lambda pause_s: None,
            say=lambda text: None,
        )


@pytest.mark.parametrize(
    "text", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"]
)
def test_a_library_that_found_no_memory_is_waited_for_as_well(text: str) -> None:
    attempts: list[int | None] = []

    def make(micro_batch: int | None) -> Held:
        attempts.append(micro_batch)
        if len(attempts) == 1:
            raise RuntimeError(text)
        return Held()

    device = Device([100])
    device.make = make  # type: ignore[method-assign]
    assert device.reserve().waited_s == 3.0


def test_any_other_error_is_raised_as_it_is() -> None:
    def make(micro_batch: int | None) -> Held:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    device = Device([100])
    device.make = make  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="mat1"):
        device.reserve()
    assert device.slept_s == []


@given(
    free=st.lists(st.integers(0, 200), min_size=1, max_size=30),
    snatched=st.integers(0, 3),
    fallback=st.sampled_from([None, FALLBACK]),
    wait_s=st.floats(0, 10),
    poll_s=st.floats(0.5, 20),
)
@settings(max_examples=40)
def test_a_wait_ends_in_time_and_takes_nothing_that_was_not_free(
    free: list[int], snatched: int, fallback: Need | None, wait_s: float, poll_s: float
) -> None:
    device = Device(list(free), snatched)
    try:
        found = device.reserve(fallback, wait_s, poll_s)
    except GpuMemoryError:
        assert sum(device.slept_s) == pytest.approx(wait_s)
    else:
        assert sum(device.slept_s) == pytest.approx(found.waited_s)
        assert found.waited_s <= wait_s + 1e-9
        assert (found.reason is None) == (found.micro_batch == WANTED.micro_batch)
        assert found.reason is None or found.waited_s == pytest.approx(wait_s)
    assert max(device.slept_s, default=0.0) <= poll_s
    assert len(device.said) == len(device.slept_s)


# The learner's own memory ---------------------------------------------------------------------


def task(batch: int = 64, micro_batch: int | None = None, **learner: Any) -> TaskConfig:
    small = AgentConfig(conv_channels=(16, 16), hidden=64)
    config = LearnerConfig(batch, micro_batch, threads=1, **{"resident_share": 0.0, **learner})
    return TaskConfig(agent=small, learner=config, replay=ReplayConfig(capacity_transitions=3_200))


def allocated_at_most(work: Callable[[], object]) -> int:
    """Bytes that were allocated at once, at most, beyond those at the start."""
    gc.collect()  # nothing from before may be freed meanwhile
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del kept
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("spec", [IMAGES, VECTORS])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("batch", "micro_batch"), [(32, None), (512, None), (512, 64)])
def test_what_is_needed_bounds_what_is_allocated_and_not_by_far(
    spec: EnvironmentSpec, precision: str, batch: int, micro_batch: int | None
) -> None:
    made = task(batch, micro_batch, precision=precision)
    measured = allocated_at_most(
        lambda: gpu_memory.warmed_agent(made.agent, made.learner, spec, CPU)
    )
    bound = gpu_memory.needed_bytes(made, spec) - gpu_memory._LIBRARY_BYTES
    assert measured <= bound <= 2.5 * measured


def test_smaller_passes_need_less_and_resident_frames_more() -> None:
    whole = gpu_memory.needed_bytes(task(512), IMAGES)
    assert gpu_memory.needed_bytes(task(512, 512), IMAGES) == whole
    assert gpu_memory.needed_bytes(task(512, 4_096), IMAGES) == whole
    assert gpu_memory.needed_bytes(task(512, 64), IMAGES) < whole
    frames = 3_200 * 44 * 44
    assert gpu_memory.needed_bytes(task(512, resident_share=0.5), IMAGES) > whole + frames


def test_asking_what_is_needed_draws_nothing_at_random_and_takes_no_memory() -> None:
    before = torch.get_rng_state()
    taken = allocated_at_most(lambda: gpu_memory.needed_bytes(task(1_000_000), IMAGES))
    assert taken < 100_000
    assert torch.equal(torch.get_rng_state(), before)


def test_a_warmed_agent_is_the_agent_that_was_built_and_learns_as_it() -> None:
    made = task(8, 3)
    torch.manual_seed(3)
    plain = build_agent(made.agent, made.learner, IMAGES, CPU)
    torch.manual_seed(3)
    warmed = gpu_memory.warmed_agent(made.agent, made.learner, IMAGES, CPU)
    assert_same(everything(warmed), everything(plain))


def make_for(made: TaskConfig, seen: list[LearnerConfig], fails: int = 0) -> Callable[..., DQN]:
    def make(learner: LearnerConfig) -> DQN:
        seen.append(learner)
        built = gpu_memory.warmed_agent(made.agent, learner, IMAGES, CPU)
        if len(seen) <= fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return built

    return make


def test_on_a_cpu_the_learner_is_made_at_once() -> None:
    made, seen = task(8, 4, gpu_wait_s=1e9), list[LearnerConfig]()
    found = gpu_memory.reserve_learner(made, IMAGES, CPU, make_for(made, seen), pytest.fail)
    assert seen == [made.learner]
    assert (found.micro_batch, found.waited_s, found.reason) == (4, 0.0, None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], torch.device]:
    """The free bytes that a driver would tell; tensors stay on the CPU."""

    def with_free(free: list[int]) -> torch.device:
        monkeypatch.setattr(gpu_memory, "device_free_bytes", lambda device: free.pop(0))
        return torch.device("cuda")

    return with_free


def test_a_second_attempt_has_the_same_parameters(
    gpu: Callable[[list[int]], torch.device],
) -> None:
    made, seen, said = task(8, gpu_wait_s=1.0, gpu_poll_s=1e-3), list[LearnerConfig](), list[str]()
    torch.manual_seed(3)
    wanted = gpu_memory.warmed_agent(made.agent, made.learner, IMAGES, CPU)
    torch.manual_seed(3)
    make = make_for(made, seen, fails=2)
    found = gpu_memory.reserve_learner(made, IMAGES, gpu([10**12] * 3), make, said.append)
    assert len(seen) == 3 and len(said) == 2
    assert_same(everything(found.made), everything(wanted))


@pytest.mark.parametrize(
    ("micro_batch", "fallback", "taken"),
    [(None, 16, 16), (32, 16, 16), (16, 16, None), (8, 16, None), (None, 999, None)],
)
def test_a_learner_falls_back_to_smaller_passes_of_the_same_batch(
    gpu: Callable[[list[int]], torch.device],
    micro_batch: int | None,
    fallback: int,
    taken: int | None,
) -> None:
    made = task(64, micro_batch, gpu_fallback_batch=fallback, gpu_wait_s=0.0)
    seen: list[LearnerConfig] = []
    smaller = replace(made, learner=replace(made.learner, micro_batch=fallback))
    free = [0, gpu_memory.needed_bytes(smaller, IMAGES)]
    if taken is None:
        with pytest.raises(GpuMemoryError):
            gpu_memory.reserve_learner(made, IMAGES, gpu(free), make_for(made, seen), pytest.fail)
        assert seen == []
        return
    found = gpu_memory.reserve_learner(made, IMAGES, gpu(free), make_for(made, seen), pytest.fail)
    assert seen == [replace(made.learner, micro_batch=taken)]
    assert found.micro_batch == taken and found.reason is not None


def test_free_memory_is_the_driver_s_and_what_torch_keeps_for_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000, 9_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert gpu_memory.device_free_bytes(torch.device("cuda")) == 1_200


def test_a_gpu_without_room_for_the_driver_has_nothing_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises(text: str) -> Callable[[torch.device], tuple[int, int]]:
        def info(device: torch.device) -> tuple[int, int]:
            raise torch.AcceleratorError(text)

        return info

    monkeypatch.setattr(torch.cuda, "mem_get_info", raises("CUDA error: out of memory"))
    assert gpu_memory.device_free_bytes(torch.device("cuda")) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", raises("CUDA error: invalid device ordinal"))
    with pytest.raises(RuntimeError, match="invalid device"):
        gpu_memory.device_free_bytes(torch.device("cuda"))
