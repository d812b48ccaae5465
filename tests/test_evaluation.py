"""Evaluation: whole games of every environment, unclipped, and honest comparison with random."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import envs.atari
import envs.catch
from envs.base import AsyncVectorEnv, Layout, Rows, Steps
from rl_cluster.evaluation import (
    Best,
    Evaluation,
    GameResults,
    Progress,
    append_evaluation,
    evaluate,
    improves,
    is_worse_than_random,
    play_games,
    random_baseline,
    read_evaluations,
)
from rl_cluster.video import VideoRecorder

PROGRESS = Progress(
    wall_s=60.0, env_steps=1000, env_frames=4000, learner_updates=200, policy_version=7
)


class Marathons(AsyncVectorEnv):
    """Games of given lengths, one reward of 1 a step, a life lost every third step.

    The observation is (environment, step of its game). Rows arrive in random order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, order_seed: int = 0) -> None:
        super().__init__(
            layout=Layout.checked(len(lengths), batch_size, 0, 0),
            observation_space=spaces.Box(0, 10_000, (2,), np.int64),
            action_space=spaces.Discrete(5),
            config={},
        )
        self._lengths = np.array(lengths)
        self._order = np.random.default_rng(order_seed)
        self.actions: dict[int, list[int]] = {env_id: [] for env_id in range(len(lengths))}

    def _reseed(self, seeds: Sequence[int]) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        self._steps = np.zeros(self.num_envs, np.int64)
        self._resetting = np.ones(self.num_envs, bool)
        self._ready = np.arange(self.num_envs)

    def _dispatch(self, actions: np.ndarray, env_ids: np.ndarray) -> None:
        for action, env_id in zip(actions, env_ids, strict=True):
            self.actions[int(env_id)].append(int(action))
        over = self._steps[env_ids] == self._lengths[env_ids]
        life_lost = (self._steps[env_ids] % 3 == 0) & ~self._resetting[env_ids]
        self._resetting[env_ids] = over | life_lost
        self._steps[env_ids] = np.where(over, 0, self._steps[env_ids] + ~self._resetting[env_ids])
        self._ready = np.concatenate([self._ready, env_ids])

    def _collect(self) -> Rows:
        self._order.shuffle(self._ready)
        env_ids, self._ready = np.split(self._ready, [self.batch_size])
        steps, acted = self._steps[env_ids], ~self._resetting[env_ids]
        over = (steps == self._lengths[env_ids]) & acted
        return Rows(
            env_ids=env_ids,
            observations=np.stack([env_ids, steps], axis=1),
            rewards=acted.astype(np.float32),
            terminated=over | ((steps % 3 == 0) & acted),
            truncated=np.zeros(len(env_ids), bool),
            game_over=over,
        )


def never() -> bool:
    return False


def stay(stacks: np.ndarray) -> np.ndarray:
    return np.zeros(len(stacks), np.int64)


def play(env: AsyncVectorEnv, policy: Callable[..., Any] = stay, **changes: Any) -> GameResults:
    arguments: dict[str, Any] = {"frame_stack": 4, "epsilon": 0.0, "should_stop": never}
    arguments |= {"rng": np.random.default_rng(1)} | changes
    results = play_games(env, policy, **arguments)
    assert results is not None
    return results


def perfect_catch(stacks: np.ndarray) -> np.ndarray:
    """Move the paddle (grey 128) under the ball (white)."""
    frames = stacks[:, -1, ::6, ::6]
    ball = (frames == 255).any(axis=1).argmax(axis=1)
    paddle = (frames[:, -1] == 128).argmax(axis=1)
    return np.array(np.sign(ball - paddle) + 1)


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_a_perfect_catch_policy_wins_every_game(batch_size: int) -> None:
    env = envs.catch.make(num_envs=16, batch_size=batch_size, seeds=50)
    results = play(env, perfect_catch)
    assert results.returns.dtype == np.float64
    assert results.returns.tolist() == [1.0] * 16
    assert results.lengths.tolist() == [6] * 16


def test_random_catch_scores_what_a_naive_simulation_gives() -> None:
    env = envs.catch.make(num_envs=2000, batch_size=500)
    results = random_baseline(env, rng=np.random.default_rng(0), should_stop=never)
    assert results is not None
    rng = np.random.default_rng(1)
    naive = []
    for _ in range(20_000):
        ball, paddle = rng.integers(7), 3
        for move in rng.integers(-1, 2, 6):
            paddle = min(6, max(0, paddle + move))
        naive.append(1.0 if paddle == ball else -1.0)
    standard_error = results.returns.std() / math.sqrt(2000)
    assert abs(results.returns.mean() - np.mean(naive)) < 4 * standard_error


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_every_environment_plays_exactly_one_whole_game_however_long(batch_size: int) -> None:
    lengths = [1, 2, 3, 40, 5, 200, 7]
    results = play(Marathons(lengths, batch_size))
    assert results.returns.tolist() == lengths
    assert results.lengths.tolist() == lengths


def test_finished_environments_are_stepped_only_to_fill_batches() -> None:
    env = Marathons([1, 1, 1, 300], batch_size=1)
    play(env)
    assert [len(env.actions[env_id]) for env_id in range(3)] == [1, 1, 1]
    env = Marathons([1, 1, 1, 300], batch_size=2)
    play(env)
    filler_steps = [len(env.actions[env_id]) for env_id in range(3)]
    assert sum(filler_steps) > 3, "recv() would have waited for ever"


def test_results_do_not_depend_on_the_order_in_which_environments_answer() -> None:
    lengths = [30, 11, 17, 23]
    seen = []
    for batch_size, order_seed in [(1, 0), (2, 1), (3, 2), (4, 3)]:
        env = Marathons(lengths, batch_size, order_seed)
        play(env, epsilon=0.5)
        seen.append([env.actions[env_id][:length] for env_id, length in enumerate(lengths)])
    assert all(actions == seen[0] for actions in seen)
    assert len(set(map(str, seen[0]))) == len(lengths), "streams differ between environments"


def test_the_policy_sees_stacks_of_unfinished_games_that_start_anew_at_each_reset() -> None:
    lengths = [4, 9]
    calls: list[np.ndarray] = []

    def policy(stacks: np.ndarray) -> np.ndarray:
        calls.append(stacks)
        return stay(stacks)

    play(Marathons(lengths, batch_size=2), policy, frame_stack=3)
    assert len(calls[-1]) == 1, "no inference for a finished game"
    stacks = [[stack[:, 1].tolist() for stack in call if stack[0, 0] == 1] for call in calls]
    steps = [stack for call in stacks for stack in call]
    # A life is lost at steps 3 and 6: the step after it is a reset, which repeats the observation.
    assert steps[:9] == [
        *([0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]),
        *([3, 3, 3], [3, 3, 4], [3, 4, 5], [4, 5, 6]),
        [6, 6, 6],
    ]


def test_exploration_takes_every_action_at_the_rate_epsilon() -> None:
    env = Marathons([10_000], batch_size=1)
    play(env, epsilon=0.4)
    counts = np.bincount(env.actions[0], minlength=5)
    assert counts[1:] == pytest.approx(np.full(4, len(env.actions[0]) * 0.4 / 5), rel=0.15)


def test_a_stopped_evaluation_has_no_result_rather_than_one_of_short_games() -> None:
    asked = iter([False] * 20 + [True])
    env = Marathons([1, 2, 500], batch_size=1)
    stopped = play_games(
        env,
        stay,
        frame_stack=1,
        epsilon=0.0,
        rng=np.random.default_rng(0),
        should_stop=lambda: next(asked),
    )
    assert stopped is None


def watch(env: AsyncVectorEnv) -> list[Steps]:
    """The rows that `env` will deliver, as they come."""
    seen: list[Steps] = []
    recv = env.recv

    def watched() -> Steps:
        seen.append(recv())
        return seen[-1]

    env.recv = watched  # type: ignore[method-assign]
    return seen


Row = tuple[float, bool, bool, bool]  # reward, terminated, game over, first


def rows_of(seen: list[Steps], env_id: int) -> list[Row]:
    return [
        (
            float(steps.rewards[row]),
            bool(steps.terminated[row]),
            bool(steps.game_over[row]),
            bool(steps.first[row]),
        )
        for steps in seen
        for row in np.flatnonzero(steps.env_ids == env_id)
    ]


def whole_game(rows: list[Row]) -> list[Row]:
    ends = [index for index, (_, _, game_over, _) in enumerate(rows) if game_over]
    return rows[: ends[0] + 1]


def test_a_pong_game_runs_to_21_points_and_its_return_is_their_sum() -> None:
    env = envs.atari.make("Pong", num_envs=3, batch_size=2, seeds=5)
    seen = watch(env)
    results = random_baseline(env, rng=np.random.default_rng(0), should_stop=never)
    env.close()
    assert results is not None
    for env_id in range(3):
        game = whole_game(rows_of(seen, env_id))
        points = [reward for reward, *_ in game if reward]
        assert set(points) <= {-1.0, 1.0}
        assert max(points.count(-1.0), points.count(1.0)) == 21
        assert results.returns[env_id] == sum(points)
        assert results.lengths[env_id] == len(game) - 1


def test_a_breakout_game_of_the_nature_protocol_is_five_lives() -> None:
    env = envs.atari.make("Breakout", num_envs=3, batch_size=2, seeds=5, protocol="nature")
    seen = watch(env)
    results = random_baseline(env, rng=np.random.default_rng(0), should_stop=never)
    env.close()
    assert results is not None
    for env_id in range(3):
        game = whole_game(rows_of(seen, env_id))
        assert sum(terminated for _, terminated, _, _ in game) == 5
        assert results.returns[env_id] == sum(reward for reward, *_ in game)
        assert results.lengths[env_id] == sum(not first for *_, first in game)
    assert results.returns.sum() > 0


def test_the_same_seeds_give_the_same_pong_games_in_any_batch() -> None:
    def returns_and_lengths(batch_size: int) -> list[list[float]]:
        env = envs.atari.make("Pong", num_envs=3, batch_size=batch_size, seeds=[4, 4, 9])
        results = play(env, epsilon=0.3)
        env.close()
        return [results.returns.tolist(), results.lengths.tolist()]

    assert returns_and_lengths(1) == returns_and_lengths(3)


def test_the_first_environments_game_is_filmed_to_its_end() -> None:
    recorder = VideoRecorder()
    env = envs.catch.make(num_envs=4, batch_size=2)
    play(env, perfect_catch, record=recorder)
    assert len(recorder) == 4, "every 2nd of the 7 frames of a game"


def evaluation(**changes: Any) -> Evaluation:
    wanted = Evaluation(
        time=1.0,
        **dataclasses.asdict(PROGRESS),
        episodes=10,
        mean_return=1.0,
        std_return=1.0,
        returns=[1.0] * 10,
        lengths=[5] * 10,
        random_mean_return=0.0,
        random_std_return=1.0,
        human_normalized=None,
        seeds=list(range(10)),
        epsilon=0.001,
    )
    return dataclasses.replace(wanted, **changes)


def test_an_evaluation_stands_beside_random_play_of_the_same_seeds() -> None:
    seeds = [3, 1, 4, 1, 5, 9]
    random = random_baseline(
        envs.catch.make(num_envs=6, seeds=seeds), rng=np.random.default_rng(0), should_stop=never
    )
    assert random is not None
    found = evaluate(
        envs.catch.make(num_envs=6, seeds=seeds),
        perfect_catch,
        game="Catch",
        seeds=seeds,
        random=random,
        progress=PROGRESS,
        frame_stack=4,
        epsilon=0.0,
        rng=np.random.default_rng(0),
        should_stop=never,
    )
    assert found is not None
    assert (found.mean_return, found.std_return, found.episodes) == (1.0, 0.0, 6)
    assert found.random_mean_return == random.returns.mean()
    assert found.random_std_return == random.returns.std(ddof=1)
    assert (found.seeds, found.policy_version, found.human_normalized) == (seeds, 7, None)


def test_a_pong_evaluation_is_normalized_by_the_published_scores() -> None:
    env = envs.atari.make("Pong", num_envs=2, seeds=5)
    random = GameResults(np.array([-21.0, -20.0]), np.array([800, 900]))
    arguments: dict[str, Any] = {"random": random, "progress": PROGRESS, "should_stop": never}
    arguments |= {"frame_stack": 4, "epsilon": 0.0, "rng": np.random.default_rng(0)}
    found = evaluate(env, stay, game="Pong", seeds=[5, 6], **arguments)
    env.close()
    assert found is not None
    assert found.human_normalized == pytest.approx((found.mean_return + 20.7) / 35.3)


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({"mean_return": -5.0}, True),
        ({"mean_return": -0.1}, False),
        ({"mean_return": 5.0}, False),
        ({"mean_return": -1.3}, False),  # 2.9 standard errors of the difference
        ({"mean_return": -1.4}, True),  # 3.1
        ({"mean_return": -5.0, "episodes": 4}, False),
        ({"mean_return": 0.0, "std_return": 0.0, "random_std_return": 0.0}, False),
    ],
)
def test_worse_than_random_is_said_only_when_chance_does_not_explain_it(
    changes: dict[str, Any], worse: bool
) -> None:
    assert is_worse_than_random(evaluation(**changes)) is worse


def test_a_random_policy_is_hardly_ever_called_worse_than_random() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        policy, random = rng.exponential(1.0, (2, 10))
        alarms += is_worse_than_random(
            evaluation(
                mean_return=policy.mean(),
                std_return=policy.std(ddof=1),
                random_mean_return=random.mean(),
                random_std_return=random.std(ddof=1),
            )
        )
    assert alarms < 10


def test_only_a_higher_mean_improves_on_the_best() -> None:
    assert improves(None, evaluation(mean_return=-21.0))
    assert improves(Best(mean_return=0.5, step=1), evaluation(mean_return=1.0))
    assert not improves(Best(mean_return=1.0, step=1), evaluation(mean_return=1.0))
    assert not improves(Best(mean_return=1.5, step=1), evaluation(mean_return=1.0))


def test_evaluations_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "Pong" / "evaluations.jsonl"
    assert read_evaluations(path) == []
    written = [evaluation(time=float(number)) for number in range(3)]
    for one in written:
        append_evaluation(path, one)
    assert read_evaluations(path) == written
    assert len(path.read_text().splitlines()) == 3


def test_a_torn_last_line_is_ignored_and_replaced_by_the_next_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    append_evaluation(path, evaluation(time=1.0))
    whole = path.read_bytes()
    append_evaluation(path, evaluation(time=2.0))
    both = path.read_bytes()
    for length in (len(whole) + 1, len(whole) + 50, len(both) - 1):
        path.write_bytes(both[:length])
        assert read_evaluations(path) == [evaluation(time=1.0)]
        append_evaluation(path, evaluation(time=3.0))
        assert read_evaluations(path) == [evaluation(time=1.0), evaluation(time=3.0)]


def test_keys_of_a_newer_version_are_ignored_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    append_evaluation(path, evaluation())
    newer = json.loads(path.read_text()) | {"added_later": 1}
    path.write_text(json.dumps(newer) + "\n")
    assert read_evaluations(path) == [evaluation()]
    path.write_text('{"time": 1}\n' + json.dumps(newer) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_evaluations(path)
