"""How good a policy is: whole games, unclipped, from fixed starts, beside the random policy.

Invariant: a result holds exactly one whole game per environment, or there is no result. Taking the
first games to end, or those that had ended when time ran out, would favour short games; and a lost
life is not a game (`Steps.game_over`). Which environment answers first changes nothing: every
environment has its own seed and its own source of exploration.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from rl_cluster.frame_stack import FrameStack
from rl_cluster.scores import human_normalized

if TYPE_CHECKING:
    from envs.base import AsyncVectorEnv, Steps
    from rl_cluster.video import VideoRecorder

# Observations (b, depth, *obs_shape) to greedy actions (b,).
Policy = Callable[[np.ndarray], np.ndarray]

# Evaluations are many. At 3 standard errors random play of 10 games is called worse than itself
# once in 300 evaluations (simulated, normal returns); at 2 it would be once in 30.
WORSE_BY_STANDARD_ERRORS = 3.0
_FEWEST_GAMES = 5  # to judge by: the spread of fewer says nothing


@dataclass(frozen=True)
class GameResults:
    """One whole game of each of n environments, in the order of the environments.

    Attributes:
      returns: (n,) float64, sums of unclipped rewards, across lives.
      lengths: (n,) int64, env_steps.
    """

    returns: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Progress:
    """Where training stood when the evaluated policy was published."""

    wall_s: float
    env_steps: int
    env_frames: int
    learner_updates: int
    policy_version: int


@dataclass(frozen=True)
class Evaluation:
    """One line of `evaluations.jsonl`. Spreads are sample standard deviations over games."""

    time: float  # unix s
    wall_s: float  # of the run
    env_steps: int
    env_frames: int
    learner_updates: int
    policy_version: int
    episodes: int
    mean_return: float
    std_return: float
    returns: list[float]
    lengths: list[int]  # env_steps
    random_mean_return: float
    random_std_return: float
    human_normalized: float | None
    seeds: list[int]
    epsilon: float
    others: dict[str, float] = field(default_factory=dict)
    """What only this kind of task tells, by name."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; part of the checkpoint, so that a restart does not forget it."""

    mean_return: float
    step: int  # learner updates


def play_games(
    env: AsyncVectorEnv,
    policy: Policy,
    *,
    frame_stack: int,
    epsilon: float,
    rng: np.random.Generator,
    should_stop: Callable[[], bool],
    record: VideoRecorder | None = None,
) -> GameResults | None:
    """Play one whole game in each environment of `env`, which must be fresh (its seeds unused).

    Args:
      env: n environments; those whose game is over are stepped on only to fill its batches.
      policy: greedy actions for stacked observations; called with rows of unfinished games only.
      frame_stack: observations in a stack.
      epsilon: probability of a uniformly random action, in [0, 1].
      rng: source of exploration; one independent stream per environment is drawn from it.
      should_stop: asked after every batch of steps.
      record: receives the frames of environment 0's game.

    Returns:
      The results, or None if `should_stop` said so before every game was over.
    """
    games = _Games(env, policy, frame_stack, epsilon, rng)
    env.async_reset()
    while True:
        steps = env.recv()
        if record is not None:
            for row in np.flatnonzero((steps.env_ids == 0) & games.playing[0]):
                record.add(steps.observations[row])
        actions, env_ids = games.advance(steps)
        if not games.playing.any():
            return GameResults(games.returns, games.lengths)
        if should_stop():
            return None
        env.send(actions, env_ids)


class _Games:
    """The state of one game per environment, and which environments wait for an action."""

    def __init__(
        self,
        env: AsyncVectorEnv,
        policy: Policy,
        frame_stack: int,
        epsilon: float,
        rng: np.random.Generator,
    ) -> None:
        space, action_space = env.single_observation_space, env.single_action_space
        assert space.shape is not None and space.dtype is not None, space
        assert isinstance(action_space, gymnasium.spaces.Discrete), action_space
        self._stacks = FrameStack(env.num_envs, frame_stack, space.shape, space.dtype)
        self._policy = policy
        self._epsilon = epsilon
        self._streams = rng.spawn(env.num_envs)
        self._actions = int(action_space.n)
        self._batch_size = env.batch_size
        self._in_flight = env.num_envs
        self._idle: list[int] = []  # over, and not in flight
        self.playing = np.ones(env.num_envs, bool)
        self.returns = np.zeros(env.num_envs)
        self.lengths = np.zeros(env.num_envs, np.int64)

    def advance(self, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
        """Count `steps` in; return the actions to send next and the environments they are for."""
        counted = self.playing[steps.env_ids]
        env_ids = steps.env_ids[counted]
        self.returns[env_ids] += steps.rewards[counted]
        self.lengths[env_ids] += ~steps.first[counted]
        self.playing[env_ids] = ~steps.game_over[counted]
        going = self.playing[steps.env_ids]
        actions = self._choose(steps, going)
        fillers = self._fillers(steps.env_ids, going)
        return (
            np.concatenate([actions, np.zeros(len(fillers), np.int64)]),
            np.concatenate([steps.env_ids[going], fillers]),
        )

    def _choose(self, steps: Steps, going: np.ndarray) -> np.ndarray:
        """Epsilon-greedy actions for the rows whose game goes on."""
        env_ids = steps.env_ids[going]
        if not len(env_ids):
            return np.zeros(0, np.int64)
        stacks = self._stacks.push(env_ids, steps.observations[going], steps.first[going])
        actions = np.array(self._policy(stacks), np.int64)
        for row, env_id in enumerate(env_ids):
            stream = self._streams[env_id]
            if stream.random() < self._epsilon:
                actions[row] = stream.integers(self._actions)
        return actions

    def _fillers(self, env_ids: np.ndarray, going: np.ndarray) -> np.ndarray:
        """Idle environments that must step on, because `recv` waits for a whole batch."""
        self._idle.extend(env_ids[~going].tolist())
        self._in_flight += int(going.sum()) - len(env_ids)
        missing = max(0, self._batch_size - self._in_flight)
        fillers, self._idle = self._idle[:missing], self._idle[missing:]
        self._in_flight += len(fillers)
        return np.array(fillers, np.int64)


def random_baseline(
    env: AsyncVectorEnv, *, rng: np.random.Generator, should_stop: Callable[[], bool]
) -> GameResults | None:
    """One whole game of the uniformly random policy in each environment of `env`, as above."""
    return play_games(
        env,
        lambda stacks: np.zeros(len(stacks), np.int64),
        frame_stack=1,
        epsilon=1.0,
        rng=rng,
        should_stop=should_stop,
    )


def evaluate(
    env: AsyncVectorEnv,
    policy: Policy,
    *,
    game: str,
    seeds: Sequence[int],
    random: GameResults,
    progress: Progress,
    frame_stack: int,
    epsilon: float,
    rng: np.random.Generator,
    should_stop: Callable[[], bool],
    record: VideoRecorder | None = None,
) -> Evaluation | None:
    """Play as `play_games` does, and put the results beside `random` play of the same `seeds`.

    `game` is the environment's usual name, by which published scores are found, if there are any.
    """
    results = play_games(
        env,
        policy,
        frame_stack=frame_stack,
        epsilon=epsilon,
        rng=rng,
        should_stop=should_stop,
        record=record,
    )
    if results is None:
        return None
    mean_return = float(results.returns.mean())
    return Evaluation(
        time=time.time(),
        **asdict(progress),
        episodes=len(results.returns),
        mean_return=mean_return,
        std_return=_sample_std(results.returns),
        returns=results.returns.tolist(),
        lengths=results.lengths.tolist(),
        random_mean_return=float(random.returns.mean()),
        random_std_return=_sample_std(random.returns),
        human_normalized=human_normalized(game, mean_return),
        seeds=list(seeds),
        epsilon=epsilon,
    )


def is_worse_than_random(evaluation: Evaluation) -> bool:
    """Whether the policy is clearly worse than random play, by more than chance explains.

    Clearly: the means differ by more than 3 standard errors of their difference (Welch 1947, with
    the variances of both samples), over at least 5 games each.
    """
    if evaluation.episodes < _FEWEST_GAMES:
        return False
    variance = evaluation.std_return**2 + evaluation.random_std_return**2
    standard_error = math.sqrt(variance / evaluation.episodes)
    deficit = evaluation.random_mean_return - evaluation.mean_return
    return deficit > WORSE_BY_STANDARD_ERRORS * standard_error


def improves(best: Best | None, evaluation: Evaluation) -> bool:
    """Whether `evaluation` has a higher mean return than the best so far; a tie has not."""
    return best is None or evaluation.mean_return > best.mean_return


def append_evaluation(path: str | Path, evaluation: Evaluation) -> None:
    """Add one line to `evaluations.jsonl`, durably; a line torn by a crash is cut off first."""
    line = json.dumps(asdict(evaluation), allow_nan=False).encode() + b"\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """The evaluations in `path`, oldest first; none if there is no file; a torn last line is none.

    Raises:
      ValueError: a line before the last is not an evaluation.
    """
    path = Path(path)
    if not path.exists():
        return []
    complete_lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse(path, number, line) for number, line in enumerate(complete_lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> Evaluation:
    known = {field.name for field in fields(Evaluation)}
    try:
        # Keys are only ever added: a file of a newer version stays readable.
        return Evaluation(**{key: value for key, value in json.loads(line).items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}, line {number}, is not an evaluation ({error}): remove that line"
        ) from error


def _sample_std(returns: np.ndarray) -> float:
    return float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
