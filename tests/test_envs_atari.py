"""Atari: protocols, lost lives, time limits, refused options, and the scores of random play."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs import atari
from envs.base import AsyncVectorEnv

NO_CHANCE = {"repeat_action_probability": 0.0, "noop_max": 1}
LIMIT = {"envpool": ("max_episode_steps", 1), "ale": ("max_num_frames_per_episode", 4)}


def time_limit(backend: str, env_steps: int) -> dict[str, int]:
    name, unit = LIMIT[backend]
    return {name: env_steps * unit}


def ends_of(env: AsyncVectorEnv, turns: int) -> list[tuple[int, str]]:
    """Where environment 0, always pressing FIRE, ends: (row, T, U and G for the flags set)."""
    env.async_reset()
    ends = []
    for row in range(turns):
        steps = env.recv()
        steps.check_valid()
        flags = (steps.terminated[0], steps.truncated[0], steps.game_over[0], steps.first[0])
        if any(flags[:3]):
            ends.append((row, "".join(c for c, flag in zip("TUGF", flags, strict=True) if flag)))
        env.send(np.ones(env.num_envs, dtype=np.int64), steps.env_ids)
    env.close()
    return ends


# Setting up ----------------------------------------------------------------------------------


def test_both_backends_give_single_grey_frames_and_the_games_own_actions() -> None:
    for backend in ("envpool", "ale"):
        env = atari.make("MsPacman", num_envs=1, backend=backend)
        assert env.single_observation_space.shape == (84, 84)
        assert env.single_observation_space.dtype == np.uint8
        assert env.single_action_space.n == 9
        assert env.frame_skip == 4
        everything = atari.make(
            "MsPacman", num_envs=1, backend=backend, options={"full_action_space": True}
        )
        assert everything.single_action_space.n == 18


def test_the_games_of_the_published_table_are_all_there() -> None:
    assert len(atari.games()) == 104
    published = "Alien Defender Jamesbond MontezumaRevenge Pong Qbert Surround UpNDown YarsRevenge"
    assert set(published.split()) <= set(atari.games())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("pong", "Pong"), ("ms_pacman", "MsPacman"), ("SpaceInvader", "SpaceInvaders"), ("", "known")],
)
def test_an_unknown_game_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown Atari game '{name}'; .*{nearest}"):
        atari.make(name, num_envs=1)


def test_the_machado_protocol_reaches_the_backends() -> None:
    config = atari.make("Pong", num_envs=1).config
    wanted = {
        "repeat_action_probability": pytest.approx(0.25),
        "episodic_life": False,
        "max_episode_steps": 27_000,
        "frame_skip": 4,
        "noop_max": 1,
        "use_fire_reset": False,
        "full_action_space": False,
        "reward_clip": False,
        "stack_num": 1,
        "gray_scale": True,
        "img_height": 84,
        "img_width": 84,
    }
    assert {name: config[name] for name in wanted} == wanted
    config = atari.make("Pong", num_envs=1, backend="ale").config
    assert config["max_num_frames_per_episode"] == 108_000
    assert config["repeat_action_probability"] == 0.25
    assert not config["use_fire_reset"] and not config["reward_clipping"]


def test_the_nature_protocol_reaches_envpool() -> None:
    config = atari.make("Pong", num_envs=1, protocol="nature").config
    assert config["repeat_action_probability"] == 0.0
    assert config["episodic_life"] and config["noop_max"] == 30
    assert not config["use_fire_reset"]


def test_options_and_threads_reach_envpool() -> None:
    options = {"frame_skip": 2, "img_height": 64, "mode": 1, "use_inter_area_resize": False}
    env = atari.make("Pong", num_envs=3, batch_size=2, threads=1, seeds=9, options=options)
    assert options.items() <= env.config.items()
    assert env.config["num_threads"] == 1 and env.config["batch_size"] == 2
    assert env.config["env_seed"] == [9, 10, 11]
    # The time limit is 108,000 frames, whatever a step is.
    assert env.config["max_episode_steps"] == 54_000
    assert env.frame_skip == 2
    assert env.single_observation_space.shape == (64, 84)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("envpool", {"noop_max": 0}, "crashes"),
        ("envpool", {"frame_skp": 4}, "unknown option 'frame_skp'; nearest: frame_skip"),
        ("envpool", {"stack_num": 4}, "single frames"),
        ("envpool", {"reward_clip": True}, "unclipped"),
        ("envpool", {"num_envs": 3}, "num_envs= to make"),
        ("envpool", {"batch_size": 3}, "batch_size= to make"),
        ("envpool", {"num_threads": 3}, "threads= to make"),
        ("envpool", {"seed": 3}, "seeds= to make"),
        ("envpool", {"env_seed": [3]}, "seeds= to make"),
        ("envpool", {"task": "boxing"}, "name"),
        ("envpool", {"gray_scale": False}, "grey"),
        ("envpool", {"zero_discount_on_life_loss": True}, "episodic_life"),
        ("envpool", {"frame_skip": 0}, "at least 1"),
        ("envpool", {"frame_skip": "4"}, "type int"),
        ("envpool", {"episodic_life": 1}, "type bool"),
        ("envpool", {"repeat_action_probability": 1.5}, "within 0..1"),
        ("envpool", {"mode": 99}, "Invalid game mode"),
        ("envpool", {"difficulty": 99}, "Invalid difficulty"),
        ("ale", {"frame_skip": 4}, "unknown option 'frame_skip'; nearest: frameskip"),
        ("ale", {"reward_clipping": True}, "unclipped"),
        ("ale", {"stack_num": 4}, "single frames"),
        ("ale", {"autoreset_mode": "SameStep"}, "next step"),
        ("ale", {"life_loss_info": True}, "reset row"),
        ("ale", {"episodic_life": True}, "new game at each lost life"),
        ("ale", {"continuous": True}, "discrete"),
    ],
)
def test_options_that_cannot_be_set_are_refused_with_the_reason(
    backend: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        atari.make("Pong", num_envs=2, backend=backend, options=options)


def test_unknown_protocols_and_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest: machado"):
        atari.make("Pong", num_envs=1, protocol="Machado")
    with pytest.raises(ValueError, match="known: envpool, ale"):
        atari.make("Pong", num_envs=1, backend="gym")
    with pytest.raises(ValueError, match="new game at each lost life"):
        atari.make("Pong", num_envs=1, backend="ale", protocol="nature")


def test_the_ale_backend_wants_an_answer_to_each_row_of_the_last_recv() -> None:
    env = atari.make("Pong", num_envs=4, batch_size=2, backend="ale")
    env.async_reset()
    earlier = env.recv()
    env.recv()
    with pytest.raises(ValueError, match="each row of the last recv"):
        env.send(np.zeros(2, dtype=np.int64), earlier.env_ids)


# Ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["envpool", "ale"])
def test_a_game_over_is_terminated_and_a_time_limit_truncated(backend: Any) -> None:
    # Without chance and always at FIRE, a game of Breakout lasts 122 steps.
    def ends(limit: int) -> list[tuple[int, str]]:
        options = NO_CHANCE | time_limit(backend, limit)
        return ends_of(atari.make("Breakout", num_envs=1, backend=backend, options=options), 260)

    (row, flags), (second, _) = ends(27_000)
    assert flags == "TG" and second == 2 * row + 1
    assert [flags for _, flags in ends(row)] == ["TG", "TG"]  # At the limit, but by itself.
    assert ends(row - 1)[:2] == [(row - 1, "UG"), (2 * row - 1, "UG")]


@pytest.mark.parametrize("backend", ["envpool", "ale"])
def test_the_game_after_a_time_limit_starts_fresh(backend: Any) -> None:
    options = NO_CHANCE | time_limit(backend, 150)
    env = atari.make("SpaceInvaders", num_envs=1, backend=backend, options=options)
    frames, _ = env.reset()
    games = []
    for _ in range(3):
        game, score = [frames[0]], 0.0
        for turn in range(150):
            frames, rewards, _, truncated, infos = env.step(np.array([1 + turn // 7 % 3]))
            game.append(frames[0])
            score += rewards[0]
        assert truncated[0] and infos["game_over"][0] and score > 0
        games.append((score, game))
        frames, *_, infos = env.step(np.array([1]))
        assert infos["first"][0]
    env.close()
    # The frames show the score: what one game had cannot show in the next.
    for score, game in games[1:]:
        assert score == games[0][0]
        np.testing.assert_array_equal(game, games[0][1])


def test_a_lost_life_is_terminated_and_only_the_last_ends_the_game() -> None:
    options = NO_CHANCE
    ends = ends_of(atari.make("Breakout", num_envs=1, protocol="nature", options=options), 300)
    assert [flags for _, flags in ends[:10]] == ["T", "T", "T", "T", "TG"] * 2
    sizes = np.diff([row for row, _ in ends[:10]])
    assert sizes.min() > 10


def test_the_time_limit_counts_over_lost_lives_and_ends_the_whole_game() -> None:
    def ends(limit: int) -> list[tuple[int, str]]:
        options = NO_CHANCE | {"max_episode_steps": limit}
        env = atari.make("Breakout", num_envs=1, protocol="nature", options=options)
        return ends_of(env, limit + 60)

    life = ends(27)[0][0]
    assert 20 < life < 27
    # One more row than steps for the reset row after the lost life; then a whole new game.
    assert ends(life + 5)[:3] == [(life, "T"), (life + 6, "UG"), (2 * life + 7, "T")]
    # A life lost at the very limit is terminal, and the game is over too.
    assert ends(life)[:2] == [(life, "TG"), (2 * life + 1, "TG")]


def test_the_next_life_goes_on_with_the_score_and_the_next_game_does_not() -> None:
    env = atari.make("Breakout", num_envs=1, protocol="nature", options=NO_CHANCE)
    start, _ = env.reset()
    kinds = []
    for _ in range(130):
        frames, *_, infos = env.step(np.array([1]))
        if infos["first"][0]:
            kinds.append(bool((frames == start).all()))
    env.close()
    # The lives left are drawn on the frame: only a new game looks like the first one.
    assert kinds == [False, False, False, False, True]


def test_a_game_that_ends_in_the_noops_after_a_lost_life_is_over() -> None:
    # With 2,000 no-ops, whole lives go by in them; EnvPool does not say when a game did.
    options = {"noop_max": 2_000}
    env = atari.make("SpaceInvaders", num_envs=4, protocol="nature", options=options)
    unseen = 0
    env.async_reset()
    for _ in range(300):
        steps = env.recv()
        steps.check_valid()
        unseen += int((steps.first & steps.game_over).sum())
        env.send(np.ones(4, dtype=np.int64), steps.env_ids)
    env.close()
    assert unseen > 0


# Scores of random play -----------------------------------------------------------------------


def random_returns(env: Any, games_each: int) -> np.ndarray:
    """Unclipped returns of the first `games_each` whole games of every environment."""
    rng = np.random.default_rng(1)
    left = np.full(env.num_envs, games_each)
    score = np.zeros(env.num_envs)
    returns: list[float] = []
    env.async_reset()
    while left.any():
        steps = env.recv()
        score[steps.env_ids] += steps.rewards
        for env_id in steps.env_ids[steps.game_over & (left[steps.env_ids] > 0)]:
            returns.append(score[env_id])
            left[env_id] -= 1
        score[steps.env_ids[steps.game_over]] = 0.0
        env.send(rng.integers(env.single_action_space.n, size=len(steps.env_ids)), steps.env_ids)
    env.close()
    return np.array(returns)


def gap_in_errors(one: np.ndarray, other: np.ndarray) -> float:
    """Difference of the means in standard errors of that difference (Welch)."""
    error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return float(abs(one.mean() - other.mean()) / error)


# How the published random player played (Mnih et al. 2015, Methods): a new action every 6th
# frame (10 Hz), no sticky actions, up to 30 no-ops, at most 18,000 frames.
PUBLISHED_PLAY: dict[str, dict[str, Any]] = {
    "envpool": {
        "frame_skip": 6,
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "max_episode_steps": 3_000,
    },
    "ale": {
        "frameskip": 6,
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "max_num_frames_per_episode": 18_000,
    },
}


@pytest.mark.parametrize(
    ("game", "published", "games_each"),
    [
        pytest.param("Asterix", 210.0, 6, marks=pytest.mark.long),
        pytest.param("Assault", 222.4, 4, marks=pytest.mark.long),
        ("Breakout", 1.7, 8),
        pytest.param("Frostbite", 65.2, 4, marks=pytest.mark.long),
        ("Pong", -20.7, 2),
        ("Qbert", 163.9, 4),
    ],
)
def test_random_play_scores_alike_on_both_backends_and_as_published(
    game: str, published: float, games_each: int
) -> None:
    returns = {
        backend: random_returns(
            atari.make(game, num_envs=4, seeds=100, backend=backend, options=options),
            games_each,
        )
        for backend, options in PUBLISHED_PLAY.items()
    }
    assert gap_in_errors(returns["envpool"], returns["ale"]) < 4
    # The published mean is one of about 30 games, so it has an error of its own.
    both = np.concatenate(list(returns.values()))
    error = both.std(ddof=1) * np.sqrt(1 / len(both) + 1 / 30)
    assert abs(both.mean() - published) < 4 * error


def test_random_play_with_sticky_actions_scores_alike_on_both_backends() -> None:
    envpool, ale = (
        random_returns(atari.make("Breakout", num_envs=4, seeds=200, backend=backend), 4)
        for backend in ("envpool", "ale")
    )
    assert gap_in_errors(envpool, ale) < 4
