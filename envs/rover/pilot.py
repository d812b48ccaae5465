"""Who drives a rover: random tracks until the first policy, then the policy, with exploration.

Invariants: every step of one message was driven by one policy version, and so was every step of
one deterministic episode. Policies are offered from another thread; the rover's own takes them.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from envs.rover.baselines import random_policy
from envs.rover.policy import Policy, PolicyError, State
from envs.rover.wire import NO_POLICY
from envs.rover.world import ACTIONS

Float32s = NDArray[np.float32]

EVAL_EVERY = 6
"""Every sixth episode is driven without exploration, and marked."""
NOISE = 0.3  # Standard deviation of the exploration, of the full track command.
_PERSISTENCE = 0.9
"""Of the noise from step to step: at 30 Hz, tracks follow nothing quicker."""

_log = logging.getLogger(__name__)


class Pilot:
    """Chooses the track commands of one rover.

    Args:
        seed: of the random tracks and the exploration.

    Attributes:
        is_eval: this episode is driven by the deterministic policy.
    """

    def __init__(self, seed: int) -> None:
        self.is_eval = False
        self._rng = np.random.default_rng([seed, 1])
        self._offered: Policy | None = None
        self._taken: Policy | None = None
        self._policy: Policy | None = None
        self._episodes = 0
        self.start_episode()

    @property
    def version(self) -> int:
        """The version of the policy that drives; -1 if there is none."""
        return NO_POLICY if self._policy is None else self._policy.version

    def offer(self, policy: Policy) -> None:
        """Drive by this policy from one of the next batches on; from any thread."""
        self._offered = policy

    def start_episode(self) -> None:
        """Forget what the last episode left; decide whether this one is deterministic."""
        turn = self._episodes % EVAL_EVERY == EVAL_EVERY - 1
        self.is_eval = turn and self._policy is not None
        self._episodes += 1
        self._state = State.zero()
        self._noise = np.zeros(ACTIONS, np.float32)

    def start_batch(self) -> None:
        """Take the policy offered last, unless a deterministic episode runs."""
        if self._offered is self._taken or self.is_eval:
            return
        self._taken = self._policy = self._offered
        # Another network's state would mean nothing to this one.
        self._state = State.zero()

    def act(self, bev: Float32s, proprio: Float32s) -> Float32s:
        """The track commands (2,) in [-1, 1] at bev (2, 128, 128) and proprio (6,)."""
        if self._policy is None:
            random: Float32s = random_policy(1, self._rng)[0]
            return random
        try:
            action, self._state = self._policy.act(bev, proprio, self._state)
        except PolicyError as error:
            _log.error("%s; random tracks until the next one", error)
            self._policy, self.is_eval = None, False
            return np.zeros(ACTIONS, np.float32)
        if not self.is_eval:
            action = action + self._explore()
        clipped: Float32s = np.clip(action, -1, 1)
        return clipped

    def _explore(self) -> Float32s:
        fresh = self._rng.normal(0, NOISE, ACTIONS) * np.sqrt(1 - _PERSISTENCE**2)
        self._noise = (_PERSISTENCE * self._noise + fresh).astype(np.float32)
        return self._noise
