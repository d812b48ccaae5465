"""What makes a rover's messages: a simulated rover, or a synthetic one that only loads the stream.

Invariant: every step is in exactly one message, in order, with the result of its own action.
Nothing here knows of the network; the methods run in a thread, one call at a time.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from envs.rover.pilot import Pilot
from envs.rover.wire import BATCH_STEPS, NO_POLICY, Message, Steps, compress, encode_steps
from envs.rover.world import ACTIONS, BEV_SHAPE, PROPRIO, RoverWorld

_SYNTHETIC_EPISODE_STEPS = 450
_SYNTHETIC_POINTS = 150  # A frame and channel: a message of 0.12 MB, as sparse frames have.


class Vehicle(Protocol):
    """One rover, as the process drives it.

    Attributes:
        chunk: the steps that one `run` is asked for when they are paced.
        steps: driven so far.
    """

    chunk: int
    steps: int

    def run(self, steps: int) -> list[Message]:
        """Drive so many steps; the messages that became full."""
        ...

    def rest(self) -> list[Message]:
        """The steps in no message yet, as a last and shorter one, if there are any."""
        ...


class _Author:
    """Numbers the messages of one rover since its start."""

    def __init__(self, rover_id: str) -> None:
        self._rover_id = rover_id
        # A rover that starts again counts from 0 again; its messages are others.
        self._start = secrets.token_hex(6)
        self._sequence = 0

    def write(self, steps: Steps, policy_version: int) -> Message:
        """Number the next message, of steps that a policy drove; its id comes only once."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        return Message(
            rover_id=self._rover_id,
            sequence=sequence,
            policy_version=policy_version,
            message_id=f"{self._rover_id}.{self._start}.{sequence}",
            steps=len(steps.rewards),
            body=encode_steps(steps),
            truncated_steps=tuple(np.flatnonzero(steps.truncated).tolist()),
        )


class SimulatedRover:
    """A rover of `RoverWorld`, driven by its pilot.

    Args:
        rover_id: goes into the messages.
        seed: of its rooms.
        pilot: drives it.
    """

    def __init__(self, rover_id: str, seed: int, pilot: Pilot) -> None:
        self.chunk = 1
        self.steps = 0
        self._world = RoverWorld(1, [seed])
        self._pilot = pilot
        self._author = _Author(rover_id)
        self._batch = _Batch()
        self._version = NO_POLICY

    def run(self, steps: int) -> list[Message]:
        """See `Vehicle`; about a millisecond a step, plus the policy's time."""
        return [message for _ in range(steps) for message in self._step()]

    def _step(self) -> Iterator[Message]:
        if self._batch.count == 0:
            self._pilot.start_batch()
            self._version = self._pilot.version
        bev, proprio = self._world.observe()
        action = self._pilot.act(bev[0], proprio[0])
        result = self._world.step(action[None])
        done, truncated = bool(result.dones[0]), bool(result.truncated[0])
        driven, reward = result.driven[0], float(result.rewards[0])
        self._batch.add(bev[0], proprio[0], driven, reward, done, self._pilot.is_eval, truncated)
        self.steps += 1
        if done:
            self._world.reset(result.dones)
            self._pilot.start_episode()
        if self._batch.count == BATCH_STEPS:
            yield from self.rest()

    def rest(self) -> list[Message]:
        """See `Vehicle`."""
        if self._batch.count == 0:
            return []
        return [self._author.write(self._batch.take(), self._version)]


class _Batch:
    """The steps of the message to come, in memory that is used again."""

    def __init__(self) -> None:
        self.count = 0
        self._bev = np.zeros((BATCH_STEPS, *BEV_SHAPE), np.float32)
        self._proprio = np.zeros((BATCH_STEPS, PROPRIO), np.float32)
        self._actions = np.zeros((BATCH_STEPS, ACTIONS), np.float32)
        self._rewards = np.zeros(BATCH_STEPS, np.float32)
        self._dones = np.zeros(BATCH_STEPS, bool)
        self._is_eval = np.zeros(BATCH_STEPS, bool)
        self._truncated = np.zeros(BATCH_STEPS, bool)

    def add(self, *step: object) -> None:
        """bev, proprio, action, reward, done, is_eval, truncated."""
        for column, value in zip(self._columns(), step, strict=True):
            column[self.count] = value
        self.count += 1

    def take(self) -> Steps:
        n, self.count = self.count, 0
        bev, proprio, *rest = (column[:n] for column in self._columns())
        return Steps(compress(bev), proprio, *rest)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return (
            self._bev,
            self._proprio,
            self._actions,
            self._rewards,
            self._dones,
            self._is_eval,
            self._truncated,
        )


class SyntheticRover:
    """Whole messages of made-up steps, cheap enough for a hundred rovers in one process.

    Args:
        rover_id: goes into the messages.
        seed: of the made-up numbers.
    """

    def __init__(self, rover_id: str, seed: int) -> None:
        self.chunk = BATCH_STEPS
        self.steps = 0
        self._bev = _synthetic_bev()
        self._rng = np.random.default_rng(seed)
        self._author = _Author(rover_id)

    def run(self, steps: int) -> list[Message]:
        """See `Vehicle`; `steps` in whole messages."""
        return [self._message() for _ in range(steps // BATCH_STEPS)]

    def rest(self) -> list[Message]:
        """See `Vehicle`: never any."""
        return []

    def _message(self) -> Message:
        numbers = self.steps + 1 + np.arange(BATCH_STEPS)
        self.steps += BATCH_STEPS
        steps = Steps(
            bev=self._bev,
            proprio=self._rng.random((BATCH_STEPS, PROPRIO), np.float32),
            actions=self._rng.uniform(-1, 1, (BATCH_STEPS, ACTIONS)).astype(np.float32),
            rewards=self._rng.uniform(-1, 1, BATCH_STEPS).astype(np.float32),
            dones=numbers % _SYNTHETIC_EPISODE_STEPS == 0,
            is_eval=np.zeros(BATCH_STEPS, bool),
            truncated=np.zeros(BATCH_STEPS, bool),
        )
        return self._author.write(steps, NO_POLICY)


@functools.cache
def _synthetic_bev() -> bytes:
    """The views of every synthetic message: points scattered at random; about 0.12 MB."""
    rng = np.random.default_rng(0)
    frames = np.zeros((BATCH_STEPS * BEV_SHAPE[0], BEV_SHAPE[1] * BEV_SHAPE[2]), np.float32)
    where = rng.integers(frames.shape[1], size=(len(frames), _SYNTHETIC_POINTS))
    values = rng.random(where.shape, np.float32)
    np.put_along_axis(frames, where, values, axis=1)
    return compress(frames.reshape(BATCH_STEPS, *BEV_SHAPE))
