"""Rollouts as plain objects: which blocks they cut, who acted, what the games were worth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from envpool_stacks import stacking_pool
from learning_samples import flatten
from naive_replay import Cut

from envs import atari, catch
from envs.base import AsyncVectorEnv, Steps
from rl_cluster import exploration
from rl_cluster.agents.networks import QNetwork
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.environments import spec_of
from rl_cluster.replay.block import Block
from rl_cluster.replay.transitions import TransitionRule, block_transitions
from rl_cluster.rollout import FinishedGame, NewWeights, Rollout, RolloutSettings

LENGTH = 12
RULE = TransitionRule(frame_stack=4, n_step=3, discount=0.99, reward_clip=None)
FIELDS = ("actions", "rewards", "terminated", "truncated", "first", "policy_versions")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a rollout's process has it by default; torch's threads wait for each other by spinning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(num_actions: int = 3) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork((4, 84, 84), num_actions, conv_channels=(4,), hidden=8, dueling=False)


def always(action: int, num_actions: int = 3) -> np.ndarray:
    """Weights of the policy that always takes `action`."""
    net = network(num_actions)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.advantage[-1].bias[action] = 1.0
    return flatten(net)


def nothing_new() -> None:
    return None


class Publisher:
    """Weights that arrive before given calls."""

    def __init__(self, news: dict[int, tuple[int, np.ndarray]]) -> None:
        self._news, self._calls = news, itertools.count()

    def __call__(self) -> tuple[int, np.ndarray] | None:
        return self._news.get(next(self._calls))


def record(env: AsyncVectorEnv) -> list[Steps]:
    """All that the environment delivers from now on."""
    delivered: list[Steps] = []
    recv = env.recv

    def recording() -> Steps:
        delivered.append(recv())
        return delivered[-1]

    env.recv = recording  # type: ignore[method-assign]
    return delivered


def rollout_of(
    env: AsyncVectorEnv,
    new_weights: NewWeights = nothing_new,
    ladder: Sequence[float] | None = None,
    warm_up_env_steps: int = 0,
    exploration_env_steps: int = 0,
) -> Rollout:
    """A rollout that is greedy from the start if nothing else is said."""
    spec = spec_of(env)
    settings = RolloutSettings(
        name="rollout:catch/0",
        block_length=LENGTH,
        frame_stack=RULE.frame_stack,
        n_step=RULE.n_step,
        ladder=np.zeros(env.num_envs) if ladder is None else np.array(ladder),
        warm_up_env_steps=warm_up_env_steps,
        exploration_env_steps=exploration_env_steps,
    )
    policy = GreedyPolicy(network(spec.num_actions), bfloat16=False)
    return Rollout(env, spec, policy, new_weights, settings, np.random.default_rng(1))


def by_source(blocks: Sequence[Block]) -> dict[int, list[Block]]:
    """Blocks of each environment, in the order in which they came."""
    groups: dict[int, list[Block]] = {}
    for block in blocks:
        name, _, env_id = block.source.rpartition("/env/")
        assert name == "rollout:catch/0"
        groups.setdefault(int(env_id), []).append(block)
    return groups


def cores(blocks: Sequence[Block], field: str) -> np.ndarray:
    """What all core rows hold, one block after the other."""
    return np.concatenate(
        [getattr(block, field)[block.context : block.context + block.core] for block in blocks]
    )


# Blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 5])
def test_blocks_are_of_one_environment_each_and_hold_its_rows_without_gap(batch_size: int) -> None:
    env = catch.make(num_envs=5, batch_size=batch_size)
    delivered = record(env)
    rollout = rollout_of(env, ladder=np.ones(5))
    blocks: list[Block] = []
    for num_blocks in (3, 1, 7, 20):
        found, _ = rollout.collect(num_blocks, 0)
        assert len(found) == num_blocks
        blocks += found
    groups = by_source(blocks)
    assert sorted(groups) == [0, 1, 2, 3, 4]
    for env_id, own in groups.items():
        assert [block.sequence for block in own] == list(range(len(own)))
        for block in own:
            block.check_valid()
        rows = [
            (steps, int(np.flatnonzero(steps.env_ids == env_id)[0]))
            for steps in delivered
            if env_id in steps.env_ids
        ][: sum(block.core for block in own)]
        for field in ("observations", "rewards", "terminated", "truncated", "first"):
            expected = np.stack([getattr(steps, field)[i] for steps, i in rows])
            np.testing.assert_array_equal(cores(own, field), expected)


def test_what_was_sealed_beyond_the_wish_comes_first_next_time() -> None:
    env = catch.make(num_envs=30)  # several with the same first length: they seal together
    delivered = record(env)
    rollout = rollout_of(env)
    together, _ = rollout.collect(1, 0)
    batches = len(delivered)
    while len(delivered) == batches:
        together += rollout.collect(1, 0)[0]
    assert [block.source.rpartition("/")[2] for block in together[:-1]] == ["0", "1", "2", "3"]
    assert [block.core for block in together] == [1, 1, 1, 1, 2]


def test_first_blocks_are_staggered() -> None:
    rollout = rollout_of(catch.make(num_envs=6))
    blocks, _ = rollout.collect(30, 0)
    groups = by_source(blocks)
    assert [groups[i][0].core for i in range(6)] == [2, 4, 6, 8, 10, 12]
    assert {block.core for own in groups.values() for block in own[1:]} == {LENGTH}


# Who acted -----------------------------------------------------------------------------------


def test_every_row_names_the_policy_that_acted_in_it() -> None:
    # Version v always takes action v % 3, so the action tells who acted.
    news = {5: (4, always(1)), 40: (8, always(2)), 41: (9, always(0)), 90: (13, always(1))}
    env = catch.make(num_envs=4, batch_size=2)
    delivered = record(env)
    rollout = rollout_of(env, Publisher(news))
    blocks, _ = rollout.collect(20, 0)
    changes = [-1, 4, 8, 9, 13]
    for env_id, own in by_source(blocks).items():
        versions, actions = cores(own, "policy_versions"), cores(own, "actions")
        at = [k for k, steps in enumerate(delivered) if env_id in steps.env_ids][: len(versions)]
        acting = [max(-1, *(news[call][0] for call in news if call <= k), -1) for k in at]
        assert versions.tolist() == acting
        assert set(versions.tolist()) <= set(changes) and len(set(versions.tolist())) >= 3
        published = versions >= 0
        np.testing.assert_array_equal(actions[published], versions[published] % 3)


def test_acting_is_greedy_on_the_stack_that_the_learner_will_gather() -> None:
    net = network()
    with torch.no_grad():  # no constant, and contrast between the places of a stack
        for module in net.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.bias is not None:
                module.bias.zero_()
                module.weight -= module.weight.mean()
    rollout = rollout_of(catch.make(num_envs=3, seeds=11), Publisher({0: (0, flatten(net))}))
    blocks, _ = rollout.collect(25, 0)
    otherwise = 0
    for block in blocks:
        stacks = block.observations[block_transitions(block, RULE).rows_tm1]
        with torch.inference_mode():
            values = net(torch.from_numpy(stacks)).numpy()
            backwards = net(torch.from_numpy(stacks[:, ::-1].copy())).numpy()
        taken = block.actions[block.context : block.context + block.core]
        assert (values[np.arange(len(taken)), taken] >= values.max(1) - 1e-5).all()
        otherwise += int((backwards.argmax(1) != taken).sum())
    assert otherwise > 20  # the network can tell one stack from another


def test_weights_of_another_network_are_refused() -> None:
    news = {3: (1, np.zeros(5, np.float32))}
    rollout = rollout_of(catch.make(num_envs=2), Publisher(news))
    with pytest.raises(ValueError, match="do not fit a network of"):
        rollout.collect(50, 0)


def test_refused_weights_never_count_as_the_policy_that_acts() -> None:
    news = {0: (6, always(2)), 3: (7, np.zeros(5, np.float32))}
    rollout = rollout_of(catch.make(num_envs=2), Publisher(news))
    with pytest.raises(ValueError, match="do not fit a network of"):
        rollout.collect(50, 0)
    blocks, _ = rollout.collect(10, 0)
    assert set(np.concatenate([block.policy_versions[3:] for block in blocks]).tolist()) == {6}


# Exploration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task_env_steps", [0, 99, 100, 150, 300, 10_000])
def test_epsilon_follows_the_tasks_steps(task_env_steps: int) -> None:
    ladder = exploration.epsilon_ladder(0.4, 7, 4)
    rollout = rollout_of(catch.make(num_envs=4), nothing_new, ladder, 100, 200)
    _, report = rollout.collect(1, task_env_steps)
    expected = exploration.annealed(ladder, task_env_steps, 100, 200)
    assert report.epsilon_mean == expected.mean()
    assert (report.epsilon_mean == 1) == (task_env_steps <= 100)


def test_each_environment_explores_at_its_own_rate() -> None:
    env = catch.make(num_envs=3, batch_size=2)
    rollout = rollout_of(env, Publisher({0: (0, always(0))}), ladder=[0.0, 0.3, 1.0])
    groups = by_source(rollout.collect(120, 0)[0])
    shares = [(cores(groups[i], "actions") != 0).mean() for i in range(3)]
    assert shares[0] == 0
    assert abs(shares[1] - 0.3 * 2 / 3) < 0.1 and abs(shares[2] - 2 / 3) < 0.1


def test_all_environments_act_at_random_during_the_warm_up() -> None:
    news = Publisher({0: (0, always(0))})
    rollout = rollout_of(catch.make(num_envs=3), news, np.zeros(3), 1_000, 1_000)
    warm_up, _ = rollout.collect(60, 999)
    assert abs((cores(warm_up, "actions") == 0).mean() - 1 / 3) < 0.1


# Games ---------------------------------------------------------------------------------------


def games_in(delivered: Sequence[Steps]) -> list[FinishedGame]:
    """Whole games, added up in plain loops."""
    games: list[FinishedGame] = []
    rewards: dict[int, list[float]] = {}
    for steps in delivered:
        for i, env_id in enumerate(steps.env_ids.tolist()):
            own = rewards.setdefault(env_id, [])
            if not steps.first[i]:
                own.append(float(steps.rewards[i]))
            if steps.game_over[i]:
                games.append(FinishedGame(sum(own), len(own)))
                rewards[env_id] = []
    return games


def test_a_game_of_catch_is_reported_once_with_its_return_and_length() -> None:
    env = catch.make(num_envs=4, batch_size=3)
    delivered = record(env)
    rollout = rollout_of(env, ladder=np.ones(4))
    reported: list[FinishedGame] = []
    for num_blocks in (1, 10, 25):
        reported += rollout.collect(num_blocks, 0)[1].games
    assert reported == games_in(delivered)
    assert {game.env_steps for game in reported} == {catch.GAME_STEPS}
    assert {game.true_return for game in reported} == {-1.0, 1.0}


def atari_rollout(game: str, **settings: Any) -> tuple[Rollout, AsyncVectorEnv]:
    env = atari.make(game, num_envs=3, batch_size=2, seeds=[5, 50, 500], threads=1, **settings)
    return rollout_of(env, ladder=np.ones(3)), env


def test_a_true_return_is_the_score_of_all_lives_up_to_a_time_limit() -> None:
    options = {"max_episode_steps": 260}
    rollout, env = atari_rollout("SpaceInvaders", protocol="nature", options=options)
    delivered = record(env)
    _, report = rollout.collect(110, 0)
    assert list(report.games) == games_in(delivered)
    lost_lives = sum((steps.terminated & ~steps.game_over).sum() for steps in delivered)
    truncated = sum(steps.truncated.sum() for steps in delivered)
    assert lost_lives > 0 and truncated > 0
    assert max(game.true_return for game in report.games) > 10
    assert max(game.env_steps for game in report.games) == 260


def test_what_a_rollout_collects_from_atari_is_what_envpool_stacks_for_the_same_actions() -> None:
    options = {"max_episode_steps": 70}
    rollout, env = atari_rollout("Breakout", options=options)
    groups = by_source(rollout.collect(45, 0)[0])
    rows = min(sum(block.core for block in own) for own in groups.values())
    actions = np.stack([cores(groups[i], "actions")[:rows] for i in range(3)], axis=1)
    pool = stacking_pool("Breakout", [5, 50, 500], env.config)
    stacks = np.stack([pool.reset()[0]] + [pool.step(each)[0] for each in actions[:-1]])
    compared = 0
    for env_id, own in groups.items():
        cut = Cut(LENGTH * (env_id + 1) // 3, LENGTH)
        for block in own:
            found = block_transitions(block, RULE)
            for row in np.flatnonzero(block.starts):
                at = cut.start(block.sequence) + row
                if at + RULE.n_step >= rows:
                    continue
                steps = int(found.rows_t[row, -1] - found.rows_tm1[row, -1])
                np.testing.assert_array_equal(
                    block.observations[found.rows_tm1[row]], stacks[at, env_id]
                )
                np.testing.assert_array_equal(
                    block.observations[found.rows_t[row]], stacks[at + steps, env_id]
                )
                compared += 1
    assert compared > 300
    assert sum(cores(own, "truncated").sum() for own in groups.values()) >= 3
