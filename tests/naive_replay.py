"""A replay without blocks, for comparison: keep every row, walk the episodes in plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rl_cluster.replay.block import Block, BlockBuilder
from rl_cluster.replay.gather import Batch
from rl_cluster.replay.transitions import TransitionRule

# On a loaded machine an example takes as long as it takes.
unhurried = settings(suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Row:
    """What arrived with one observation, and what was answered to it."""

    observation: np.ndarray
    action: int
    reward: np.float32
    terminated: bool
    truncated: bool
    first: bool
    policy_version: int

    @property
    def ends(self) -> bool:
        return self.terminated or self.truncated


@dataclass(frozen=True)
class Transition:
    """One transition, in DQN Zoo's notation."""

    s_tm1: np.ndarray
    a_tm1: int
    r_t: np.float32
    discount_t: np.float32
    s_t: np.ndarray


@dataclass(frozen=True)
class Cut:
    """How a builder cuts rows into blocks."""

    first_length: int
    length: int

    def start(self, sequence: int) -> int:
        """The row of the whole stream that is the first core row of block `sequence`."""
        return 0 if sequence == 0 else self.first_length + (sequence - 1) * self.length

    def sealed_rows(self, rows: int, n_step: int) -> int:
        """Core rows of all blocks that `rows` rows complete."""
        sealed = 0
        while (end := sealed + (self.length if sealed else self.first_length)) + n_step <= rows:
            sealed = end
        return sealed


def stack_at(rows: Sequence[Row], at: int, depth: int) -> np.ndarray:
    """The last `depth` frames of the episode; before its first frame, that frame again."""
    frames: list[np.ndarray] = []
    k = at
    while len(frames) < depth:
        frames.insert(0, rows[k].observation)
        if not rows[k].first:
            k -= 1
    return np.stack(frames)


def transition_at(rows: Sequence[Row], at: int, rule: TransitionRule) -> Transition:
    """The transition that starts at row `at`, which must not have ended an episode."""
    r_t, discount = np.float32(0), 1.0
    k = at
    while k < at + rule.n_step and not rows[k].ends:
        k += 1
        reward = rows[k].reward
        if rule.reward_clip is not None:
            reward = np.float32(max(-rule.reward_clip, min(rule.reward_clip, float(reward))))
        r_t = np.float32(r_t + np.float32(rule.discount ** (k - 1 - at)) * reward)
    discount = 0.0 if rows[k].terminated else rule.discount ** (k - at)
    return Transition(
        stack_at(rows, at, rule.frame_stack),
        rows[at].action,
        r_t,
        np.float32(discount),
        stack_at(rows, k, rule.frame_stack),
    )


def build(rows: Sequence[Row], cut: Cut, rule: TransitionRule, source: str = "env") -> list[Block]:
    """The blocks that a builder makes of the rows."""
    builder = BlockBuilder(
        source,
        length=cut.length,
        context=rule.frame_stack - 1,
        tail=rule.n_step,
        first_length=cut.first_length,
    )
    return [block for row in rows if (block := append(builder, row)) is not None]


def append(builder: BlockBuilder, row: Row) -> Block | None:
    return builder.append(
        row.observation,
        row.action,
        float(row.reward),
        terminated=row.terminated,
        truncated=row.truncated,
        first=row.first,
        policy_version=row.policy_version,
    )


def assert_same(batch: Batch, i: int, expected: Transition) -> None:
    """Place `i` of a batch is the expected transition, bit for bit."""
    np.testing.assert_array_equal(batch.s_tm1[i], expected.s_tm1)
    np.testing.assert_array_equal(batch.s_t[i], expected.s_t)
    assert batch.a_tm1[i] == expected.a_tm1
    assert batch.r_t[i].tobytes() == expected.r_t.tobytes()
    assert batch.discount_t[i].tobytes() == expected.discount_t.tobytes()


# Random rows ---------------------------------------------------------------------------------

rules = st.builds(
    TransitionRule,
    frame_stack=st.integers(1, 4),
    n_step=st.integers(1, 5),
    discount=st.sampled_from([0.0, 0.9, 0.99, 0.997, 1.0]),
    reward_clip=st.sampled_from([None, 0.5, 1.0]),
)

cuts = st.integers(1, 9).flatmap(lambda n: st.builds(Cut, st.integers(1, n), st.just(n)))


@st.composite
def streams(draw: st.DrawFn, env_id: int = 0) -> list[Row]:
    """Rows of a few whole episodes and of one that is still going on.

    Every observation names its environment and row. Rows that end an episode carry an action and
    reset rows a reward, and neither may have any effect.
    """
    endings = draw(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    flags = []
    for steps, terminated in endings:
        flags += [(False, False)] * steps + [(terminated, not terminated)]
    flags += [(False, False)] * draw(st.integers(1, 20))
    rows, first = [], True
    for at, (terminated, truncated) in enumerate(flags):
        observation = np.array([env_id, at], np.uint16)
        reward = np.float32(rng.normal(scale=2) if rng.random() < 0.8 else -0.0)
        action, version = int(rng.integers(18)), int(rng.integers(-1, 100))
        rows.append(Row(observation, action, reward, terminated, truncated, first, version))
        first = terminated or truncated
    return rows


# Blocks that name themselves -----------------------------------------------------------------


def numbered_block(
    number: int, core: int = 4, obs_shape: tuple[int, ...] = (6, 5), dtype: str = "uint8"
) -> Block:
    """A block of a stack of 2 and n = 1 whose every array follows from `number`."""
    rng = np.random.default_rng(number)
    rows = core + 2
    terminated = np.zeros(rows, np.bool_)
    terminated[2] = number % 3 == 0
    first = np.zeros(rows, np.bool_)
    first[3] = terminated[2]
    return Block(
        f"env/{number % 5}",
        number,
        1,
        core,
        rng.integers(0, 256, (rows, *obs_shape)).astype(dtype),
        rng.integers(0, 18, rows, dtype=np.int32),
        rng.normal(size=rows).astype(np.float32),
        terminated,
        np.zeros(rows, np.bool_),
        first,
        np.full(rows, number, np.int32),
    )


def assert_same_block(found: Block, wanted: Block) -> None:
    """Equal bit for bit, in value, shape and dtype."""
    assert vars(found).keys() == vars(wanted).keys()
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert (other.dtype, other.shape) == (value.dtype, value.shape), name
            assert other.tobytes() == np.ascontiguousarray(value).tobytes(), name
        else:
            assert other == value, name
