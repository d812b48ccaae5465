"""Exact resume: N updates are k, a checkpoint on disk, and N - k of fresh objects, bit for bit.

One rollout, its replay and its learner take turns in one thread, as the ratio lets them. The blocks
themselves stand in for the journal, whose own tests show that it brings them back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_samples import assert_same, everything, flatten

from envs import catch
from envs.base import AsyncVectorEnv, Layout
from rl_cluster import exploration
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.checkpoint import Checkpoint, CheckpointStore
from rl_cluster.config import AgentConfig, LearnerConfig
from rl_cluster.environments import spec_of
from rl_cluster.learner import Learner, build_agent, build_network, checkpoint_schema
from rl_cluster.replay.block import Block
from rl_cluster.replay.gather import BatchRing, MappedBlocks
from rl_cluster.replay.index import ReplayIndex, Sample
from rl_cluster.replay.rate_limiter import RateLimiter
from rl_cluster.replay.transitions import TransitionRule
from rl_cluster.rollout import FinishedGame, Rollout, RolloutSettings, RolloutState

LENGTH, BATCH, ENVIRONMENTS = 3, 16, 4  # the first two seal their blocks together
CAPACITY, WARM_UP = 120, 40
RATIO, SLACK = 3.7, 400.0
RULE = TransitionRule(frame_stack=2, n_step=3, discount=0.99, reward_clip=1.0)
AGENT = AgentConfig(frame_stack=2, n_step=3, conv_channels=(4,), hidden=16)
LEARNER = LearnerConfig(
    batch=BATCH,
    learning_rate=1e-3,
    schedule="cosine",
    schedule_updates=100,
    target_period=7,
    publish_period=5,
    threads=1,
)
UPDATES = 40


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Record:
    """What happened, in order."""

    samples: list[Sample] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    td_errors: list[bytes] = field(default_factory=list)
    games: list[FinishedGame] = field(default_factory=list)

    def rows(self) -> list[tuple[Any, ...]]:
        samples = [(s.block_ids.tolist(), s.rows.tolist(), s.weights.tobytes())
                   for s in self.samples]  # fmt: skip
        return list(zip(samples, self.frames, self.losses, self.td_errors, strict=True))


class Task:
    """All the plain parts of one task. `seed` is of everything that a resume has to bring back."""

    def __init__(self, seed: int, learner: LearnerConfig) -> None:
        torch.manual_seed(seed)
        env = catch.make(num_envs=ENVIRONMENTS, batch_size=2, seeds=seed)
        spec = spec_of(env)
        cpu = torch.device("cpu")
        self.learner = Learner(
            build_agent(AGENT, learner, spec, cpu),
            cpu,
            learner.publish_period,
            self._publish,
            checkpoint_schema(AGENT, spec),
        )
        settings = RolloutSettings(
            name="rollout:Catch/0",
            block_length=LENGTH,
            frame_stack=2,
            n_step=3,
            ladder=exploration.epsilon_ladder(0.4, 7.0, ENVIRONMENTS),
            warm_up_env_steps=WARM_UP,
            exploration_env_steps=200,
        )
        policy = GreedyPolicy(build_network(AGENT, spec), bfloat16=True)
        rng = np.random.default_rng(seed)
        self.rollout = Rollout(env, spec, policy, self._newest, settings, rng)
        self.index = ReplayIndex(CAPACITY, LENGTH, 0.6, np.random.default_rng(seed + 1))
        self.limiter = RateLimiter(RATIO, WARM_UP, SLACK)
        self.mapped, self.ring = MappedBlocks(RULE, LENGTH), BatchRing(2)
        self.blocks: dict[int, Block] = {}
        self.next_block_id, self.env_steps = 0, 0
        self.published: tuple[int, np.ndarray] | None = None
        self.record = Record()

    def train(self, updates: int) -> Record:
        """Go on until so many updates were made, since the very start."""
        while self.learner.counters.updates < updates:
            if self.limiter.may_sample(BATCH):
                self._learn()
            else:
                self._collect()
        return self.record

    def _collect(self) -> None:
        blocks, report = self.rollout.collect(1, self.env_steps)
        self.record.games += report.games
        for block in blocks:
            info = block.info()
            evicted = self.index.insert(self.next_block_id, info)
            if evicted is not None:
                self.mapped.discard(evicted + 1)
                self.blocks = {i: kept for i, kept in self.blocks.items() if i > evicted}
            self.mapped.insert(self.next_block_id, block)
            self.blocks[self.next_block_id] = block
            self.next_block_id += 1
            self.limiter.insert(info.transitions)
            self.env_steps += info.transitions

    def _learn(self) -> None:
        beta = 0.4 + 0.6 * min(1.0, self.learner.counters.updates / 50)
        sample = self.index.sample(BATCH, beta)
        self.limiter.sample(BATCH)
        batch = self.mapped.gather(sample, self.ring)
        (report,) = self.learner.step(batch)
        assert report.td_errors is not None
        self.index.update_priorities(sample, report.td_errors)
        self.record.samples.append(sample)
        self.record.frames.append(batch.s_tm1.tobytes() + batch.s_t.tobytes())
        self.record.losses.append(report.loss)
        self.record.td_errors.append(report.td_errors.tobytes())

    def _publish(self, version: int, flat: np.ndarray) -> None:
        self.published = version, flat.copy()

    def _newest(self) -> tuple[int, np.ndarray] | None:
        newer, self.published = self.published, None
        return newer

    def save(self, directory: Path) -> None:
        """Everything but the blocks."""
        rollout, (block_ids, priorities) = self.rollout.state(), self.index.priorities()
        version, weights = self.published or (-1, np.zeros(0, np.float32))
        extra = {
            "index": self.index.state(),
            "limiter": self.limiter.state(),
            "rollout": rollout.values,
            "counts": [self.next_block_id, self.env_steps, version],
        }
        arrays = {f"rollout.{name}": array for name, array in rollout.arrays.items()}
        arrays |= {"block_ids": block_ids, "priorities": priorities, "published": weights}
        tensors = {f"replay.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        CheckpointStore(directory, keep=1).save(self.learner.checkpoint(extra, tensors))

    def load(self, directory: Path, blocks: Mapping[int, Block], without: str = "") -> None:
        """Continue from the checkpoint, leaving out one part of it."""
        loaded = CheckpointStore(directory, keep=1).load_latest(self.learner.schema)
        assert loaded is not None
        saved = loaded.checkpoint
        parts = {"learner", "index", "priorities", "limiter", "rollout", "published"}
        assert without in parts | {""}
        for part in sorted(parts - {without}):
            getattr(self, f"_load_{part}")(saved, _arrays(saved))
        self._load_blocks(_arrays(saved), blocks, with_priorities=without != "priorities")
        self.next_block_id, self.env_steps, _ = saved.state["counts"]

    def _load_learner(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        self.learner.restore(saved)

    def _load_index(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        self.index.restore(saved.state["index"])

    def _load_priorities(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        """Come with the blocks."""

    def _load_limiter(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        self.limiter.restore(saved.state["limiter"])

    def _load_rollout(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        own = {k.removeprefix("rollout."): a for k, a in arrays.items() if k.startswith("rollout.")}
        self.rollout.restore(RolloutState(saved.state["rollout"], own))

    def _load_published(self, saved: Checkpoint, arrays: Mapping[str, np.ndarray]) -> None:
        version = saved.state["counts"][2]
        self.published = (version, arrays["published"]) if version >= 0 else None

    def _load_blocks(
        self, arrays: Mapping[str, np.ndarray], blocks: Mapping[int, Block], with_priorities: bool
    ) -> None:
        """Newest first, as from the journal."""
        kept = dict(zip(arrays["block_ids"].tolist(), arrays["priorities"], strict=True))
        assert kept.keys() == blocks.keys()
        for block_id in sorted(blocks, reverse=True):
            block = blocks[block_id]
            own = kept[block_id][: block.core] if with_priorities else None
            assert self.index.prepend(block_id, block.info(), own)
            self.mapped.insert(block_id, block)
            self.blocks[block_id] = block


def _arrays(saved: Checkpoint) -> dict[str, np.ndarray]:
    tensors = saved.optimizer.items()
    return {k.removeprefix("replay."): t.numpy() for k, t in tensors if k.startswith("replay.")}


VARIANTS = {
    "bfloat16": LEARNER,
    "float32": LearnerConfig(**{**vars(LEARNER), "precision": "float32"}),
    "averaging, in passes": LearnerConfig(
        **{**vars(LEARNER), "target": "averaging", "micro_batch": 6}
    ),
}


@pytest.fixture(scope="module")
def steady() -> dict[str, Task]:
    """Tasks that were never interrupted."""
    return {}


def trained(name: str, steady: dict[str, Task]) -> Task:
    if name not in steady:
        steady[name] = Task(1, VARIANTS[name])
        steady[name].train(UPDATES)
    return steady[name]


def resumed(name: str, interrupted_after: int, directory: Path, without: str = "") -> Task:
    first = Task(1, VARIANTS[name])
    first.train(interrupted_after)
    first.save(directory)
    second = Task(99, VARIANTS[name])
    second.load(directory, first.blocks, without)
    second.record = first.record
    second.train(UPDATES)
    return second


@pytest.mark.parametrize(
    ("name", "interrupted_after"),
    [
        ("bfloat16", 0),
        ("bfloat16", 1),
        ("bfloat16", 5),
        ("bfloat16", 24),
        ("bfloat16", 39),
        ("float32", 24),
        ("averaging, in passes", 24),
    ],
)
def test_a_resumed_task_learns_bit_for_bit_as_one_that_never_stopped(
    name: str, interrupted_after: int, tmp_path: Path, steady: dict[str, Task]
) -> None:
    wanted, found = trained(name, steady), resumed(name, interrupted_after, tmp_path)
    assert found.record.rows() == wanted.record.rows()
    assert found.record.games == wanted.record.games
    assert_same(everything(found.learner.agent), everything(wanted.learner.agent))
    assert found.learner.counters == wanted.learner.counters
    assert (found.env_steps, found.next_block_id) == (wanted.env_steps, wanted.next_block_id)
    for own, other in zip(found.index.priorities(), wanted.index.priorities(), strict=True):
        assert np.array_equal(own, other)
    assert found.limiter.state() == wanted.limiter.state()


def test_the_comparison_covers_evictions_games_and_new_weights(steady: dict[str, Task]) -> None:
    task = trained("bfloat16", steady)
    assert min(task.blocks) > 0
    assert len(task.record.games) > 10
    assert max(block.policy_versions.max() for block in task.blocks.values()) > 4
    interrupted = Task(1, VARIANTS["bfloat16"])
    interrupted.train(5)
    assert interrupted.published is not None, "no weights are under way"
    saved = interrupted.rollout.state()
    assert saved.values["sealed"], "no sealed block waits to be collected"
    assert all(builder["used"] for builder in saved.values["builders"])


@pytest.mark.parametrize(
    "part", ["learner", "index", "priorities", "limiter", "rollout", "published"]
)
def test_no_part_of_what_is_saved_could_be_left_out(
    part: str, tmp_path: Path, steady: dict[str, Task]
) -> None:
    wanted, at = trained("bfloat16", steady), 5
    found = resumed("bfloat16", at, tmp_path, without=part)
    assert found.record.rows()[:at] == wanted.record.rows()[:at]
    assert found.record.rows() != wanted.record.rows()


# The parts by themselves ----------------------------------------------------------------------


def played(env: AsyncVectorEnv, rng: np.random.Generator, turns: int) -> list[tuple[bytes, ...]]:
    seen = []
    for _ in range(turns):
        steps = env.recv()
        seen.append(tuple(array.tobytes() for array in vars(steps).values()))
        env.send(rng.integers(3, size=len(steps.env_ids)), steps.env_ids)
    return seen


@pytest.mark.parametrize("batch_size", [1, 3, 5])
@pytest.mark.parametrize("turns", [0, 1, 7, 40])
def test_games_of_catch_go_on_where_they_were(batch_size: int, turns: int) -> None:
    first = catch.make(num_envs=5, batch_size=batch_size, seeds=3)
    first.async_reset()
    played(first, np.random.default_rng(0), turns)
    state = first.state()
    other = catch.make(num_envs=5, batch_size=batch_size, seeds=77)
    other.restore(state)
    again = catch.make(num_envs=5, batch_size=batch_size, seeds=78)
    wanted = played(first, np.random.default_rng(1), 50)
    assert played(other, np.random.default_rng(1), 50) == wanted
    again.restore(state)  # copies: whoever was restored first has changed nothing in them
    assert played(again, np.random.default_rng(1), 50) == wanted


def test_an_environment_restored_before_an_action_awaits_that_action() -> None:
    first = catch.make(num_envs=3, batch_size=3)
    first.async_reset()
    ids = first.recv().env_ids
    other = catch.make(num_envs=3, batch_size=3)
    other.restore(first.state())
    with pytest.raises(RuntimeError, match="wait for ever"):
        other.recv()
    for env in (first, other):
        env.send(np.array([0, 1, 2]), ids)
    assert np.array_equal(first.recv().observations, other.recv().observations)


class Unsaved(catch.Catch):
    """As an emulator in C++: its games are its own."""

    _state = AsyncVectorEnv._state
    _restore = AsyncVectorEnv._restore


def test_an_environment_that_cannot_save_its_games_says_so() -> None:
    saved = catch.make(num_envs=2).state()
    env = Unsaved(Layout.checked(2, None, 0, 0))
    with pytest.raises(NotImplementedError, match="Unsaved cannot save its games"):
        env.state()
    with pytest.raises(NotImplementedError, match="Unsaved cannot go on"):
        env.restore(saved)


def test_a_policy_gives_the_weights_that_it_takes() -> None:
    spec = spec_of(catch.make(num_envs=1))
    networks = [build_network(AGENT, spec) for _ in range(2)]
    wanted = flatten(networks[0])
    first, other = (GreedyPolicy(network, bfloat16=True) for network in networks)
    kept = first.weights()
    other.load(kept)
    assert np.array_equal(kept, wanted) and np.array_equal(other.weights(), wanted)
    first.load(np.zeros_like(wanted))
    assert np.array_equal(kept, wanted)
