"""The sum tree, against a plain array and its cumulative sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import unhurried

from rl_cluster.replay.sum_tree import SumTree

sizes = st.integers(1, 70)
# Whole numbers, whose sums are exact; many of them zero.
whole = st.sampled_from([0, 0, 0, 1, 2, 5, 1000])
# Any priorities, as small and as large as float64 has them.
any_value = st.sampled_from([0.0]) | st.floats(0, 1e300, allow_subnormal=True)


@st.composite
def writes(draw: st.DrawFn, value: st.SearchStrategy[float]) -> tuple[int, list[list[tuple]]]:
    """A size, and calls of `set`, each a list of (index, value) with repetitions."""
    size = draw(sizes)
    pair = st.tuples(st.integers(0, size - 1), value)
    return size, draw(st.lists(st.lists(pair, max_size=12), min_size=1, max_size=8))


def filled(size: int, calls: list[list[tuple]]) -> tuple[SumTree, np.ndarray]:
    """The tree after these calls, and the array it should equal."""
    tree, values = SumTree(size), np.zeros(size)
    for call in calls:
        indices = np.array([index for index, _ in call], np.int64)
        tree.set(indices, np.array([value for _, value in call], np.float64))
        for index, value in call:  # the last of a repeated index stays
            values[index] = value
    return tree, values


@given(writes(whole))
@unhurried
def test_every_target_finds_the_index_that_a_cumulative_sum_finds(data: tuple) -> None:
    tree, values = filled(*data)
    np.testing.assert_array_equal(tree.get(np.arange(len(values))), values)
    assert tree.total == values.sum()
    targets = np.arange(0, values.sum(), max(1, values.sum() // 500))
    targets = np.concatenate([targets, targets + 0.5])
    expected = np.searchsorted(np.cumsum(values), targets, side="right")
    np.testing.assert_array_equal(tree.find(targets), expected)


@given(writes(any_value), st.integers(0, 2**32))
@unhurried
def test_an_index_without_value_is_never_found(data: tuple, seed: int) -> None:
    tree, values = filled(*data)
    if tree.total == 0 or not np.isfinite(tree.total):
        return
    shares = np.append(np.random.default_rng(seed).random(50), [0, 0.5, 1 - 2**-53, 1])
    found = tree.find(shares * tree.total)
    assert (values[found] > 0).all()
    # Up to rounding, the target lies in the interval of what was found.
    ends = np.cumsum(values) / tree.total
    starts = np.append(0, ends[:-1])
    assert (starts[found] - 1e-9 <= shares).all() and (shares <= ends[found] + 1e-9).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
def test_a_value_that_is_no_priority_refuses_the_whole_call(bad: float) -> None:
    tree = SumTree(5)
    tree.set(np.arange(5), np.arange(5.0))
    with pytest.raises(ValueError, match="finite and not negative; none was set"):
        tree.set(np.array([0, 1, 2]), np.array([7.0, bad, 7.0]))
    assert tree.get(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert tree.total == 10


def test_a_value_can_go_back_to_zero() -> None:
    tree = SumTree(3)
    tree.set(np.arange(3), np.array([1.0, 2.0, 4.0]))
    tree.set(np.array([1]), np.array([0.0]))
    assert tree.total == 5
    assert tree.find(np.array([0.0, 0.99, 1.0, 4.99])).tolist() == [0, 0, 2, 2]


def test_a_tree_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        SumTree(0)
