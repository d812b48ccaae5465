"""The rovers as their messages show them: counts, gaps, clocks, quotas, returns of episodes.

Invariants: only `now` tells time; a rover's clock is shown (`clock_skew_s`) and decides nothing. A
message that is delivered again changes nothing but the count of such. An episode of which a message
is known to be lost has no return. What is kept is bounded, however many rovers there are said to
be, and whatever they send.

Messages without a sequence number are taken as they come, one after another, as the protocol
allows; what follows from that is marked as not `whole`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rl_cluster.streams.codec import Experience
from rl_cluster.streams.episodes import Episode, FinishedEpisode
from rl_cluster.streams.identity import rover_of

MAX_ROVERS = 1000
"""Known at once; the one that was silent longest is forgotten first."""
BURST_S = 10.0
"""Seconds of its quota that a rover may send at once."""
_RECENT = 10_000
_FINISHED = 10_000
_SHOWN_EPISODES = 20
_REORDERED = 1000
"""A number that is further back than this is no late message: the rover counts from anew."""


@dataclass(frozen=True)
class RoverStatus:
    """What is known of one rover, since this reader began."""

    rover: str
    messages: int
    """Each counted once."""
    repeated: int
    """Messages that had been here before."""
    steps: int
    eval_steps: int
    """Of them, those driven by the deterministic policy."""
    refused_steps: int
    """Of them, those over the quota: not learned from."""
    gaps: int
    lost_messages: int
    """By the sequence numbers: sent, and not here so far."""
    restarts: int
    """How often it began to count anew."""
    episodes: int
    """Finished ones whose return is known; without evaluation."""
    eval_episodes: int
    broken_episodes: int
    """Finished or given up ones whose return is not known."""
    mean_return: float | None
    """Of the last 20 episodes at most."""
    mean_eval_return: float | None
    episode_steps: int
    """Of the running episode, as far as it is here."""
    episode_return: float
    last_seen_age_s: float
    policy_version: int | None
    """The last that it named; -1: it has none; None: it names none."""
    clock_skew_s: float | None
    """Seconds that its clock is ahead of the server's; None: it sends no time."""


class Fleet:
    """All rovers that were heard of.

    Args:
      quota_steps_per_s: training steps of one rover that may be learned from; None: all.
      now: seconds that only grow.
    """

    def __init__(self, quota_steps_per_s: float | None, now: Callable[[], float]) -> None:
        self._quota, self._now = quota_steps_per_s, now
        self._rovers: OrderedDict[str, _Rover] = OrderedDict()
        self._recent: OrderedDict[str, bool] = OrderedDict()
        self._finished: deque[FinishedEpisode] = deque(maxlen=_FINISHED)

    def take(self, experience: Experience, *, message: str, published_s: float) -> bool:
        """Count a message.

        Args:
          experience: what it holds.
          message: its identity.
          published_s: when the server took it, unix seconds.

        Returns:
          Whether it may be learned from: False where its rover is over the quota. The same for each
          delivery of one message.
        """
        rover = self._seen(rover_of(experience.metadata))
        if message in self._recent:
            rover.repeated += 1
            return self._recent[message]
        training_steps = int((~experience.is_eval).sum())
        learned = rover.spend(training_steps, self._quota)
        rover.count(experience, published_s)
        rover.refused_steps += 0 if learned else training_steps
        self._finished.extend(rover.follow(experience))
        self._recent[message] = learned
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return learned

    def take_finished(self) -> list[FinishedEpisode]:
        """Episodes that ended since the last call, with a return; the newest 10,000 of them."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def status(self) -> list[RoverStatus]:
        """One record a rover, by name."""
        now_s = self._now()
        return [self._rovers[name].status(name, now_s) for name in sorted(self._rovers)]

    def _seen(self, name: str) -> _Rover:
        rover = self._rovers.setdefault(name, _Rover(self._now()))
        self._rovers.move_to_end(name)
        rover.seen_s = self._now()
        if len(self._rovers) > MAX_ROVERS:
            self._rovers.popitem(last=False)
        return rover


@dataclass
class _Rover:
    seen_s: float
    paid_s: float | None = None
    credit_steps: float = 0.0
    messages: int = 0
    repeated: int = 0
    steps: int = 0
    eval_steps: int = 0
    refused_steps: int = 0
    gaps: int = 0
    lost_messages: int = 0
    restarts: int = 0
    episodes: int = 0
    eval_episodes: int = 0
    broken_episodes: int = 0
    policy_version: int | None = None
    clock_skew_s: float | None = None
    sequence: int | None = None
    episode: Episode = field(default_factory=lambda: Episode(partial=True))
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=_SHOWN_EPISODES))
    eval_returns: deque[float] = field(default_factory=lambda: deque(maxlen=_SHOWN_EPISODES))

    def spend(self, steps: int, quota: float | None) -> bool:
        """A bucket of credit that fills with time; a message may leave a debt."""
        if quota is None or steps == 0:
            return True
        if self.paid_s is None:
            self.credit_steps, self.paid_s = quota * BURST_S, self.seen_s
        earned = quota * max(0.0, self.seen_s - self.paid_s)
        self.credit_steps = min(quota * BURST_S, self.credit_steps + earned)
        self.paid_s = self.seen_s
        if self.credit_steps <= 0:
            return False
        self.credit_steps -= steps
        return True

    def count(self, experience: Experience, published_s: float) -> None:
        metadata = experience.metadata
        self.messages += 1
        self.steps += experience.steps
        self.eval_steps += int(experience.is_eval.sum())
        self.policy_version = metadata.policy_version
        if metadata.sent_at_s is not None:
            self.clock_skew_s = metadata.sent_at_s - published_s

    def follow(self, experience: Experience) -> list[FinishedEpisode]:
        """Add the steps to its episodes; return those that end with them."""
        if not self._join(experience.metadata.sequence):
            return []
        metadata, finished = experience.metadata, []
        ends = (np.flatnonzero(experience.dones) + 1).tolist()
        for start, end in zip([0, *ends], [*ends, experience.steps], strict=True):
            rewards, evals = experience.rewards[start:end], experience.is_eval[start:end]
            self.episode.add(rewards, evals, metadata.policy_version)
            if end > start and experience.dones[end - 1]:
                finished.append(self.episode.finished(rover_of(metadata)))
                self.episode = Episode()
        return [each for each in map(self._settle, finished) if each is not None]

    def _settle(self, episode: FinishedEpisode | None) -> FinishedEpisode | None:
        if episode is None:
            self.broken_episodes += 1
        elif episode.is_eval:
            self.eval_episodes += 1
            self.eval_returns.append(episode.total_reward)
        else:
            self.episodes += 1
            self.returns.append(episode.total_reward)
        return episode

    def _join(self, sequence: int | None) -> bool:
        """Say how a message goes on with the one before; False where it is a late one."""
        before, self.sequence = self.sequence, sequence
        if sequence is None or (before is None and self.messages > 1):
            self.episode.certain = False
        elif before is None:
            self._begin(sequence)
        elif sequence == 0 or before - sequence >= _REORDERED:
            self.restarts += 1
            self._begin(sequence)
        elif sequence <= before:
            self.sequence = before
            self.lost_messages = max(0, self.lost_messages - 1)
            return False
        elif sequence > before + 1:
            self.gaps += 1
            self.lost_messages += sequence - before - 1
            self.episode.partial = True
        return True

    def _begin(self, sequence: int) -> None:
        """A rover's first message is numbered 0 and starts an episode; another is one of many."""
        self.broken_episodes += self.episode.steps > 0
        self.episode = Episode(partial=sequence != 0)

    def status(self, name: str, now_s: float) -> RoverStatus:
        """What is known of the rover, its ages as of `now_s` (the reader's clock)."""
        shown = {
            key: value
            for key, value in vars(self).items()
            if key in RoverStatus.__dataclass_fields__
        }
        return RoverStatus(
            rover=name,
            mean_return=_mean(self.returns),
            mean_eval_return=_mean(self.eval_returns),
            episode_steps=self.episode.steps,
            episode_return=self.episode.total_reward,
            last_seen_age_s=max(0.0, now_s - self.seen_s),
            **shown,
        )


def _mean(values: deque[float]) -> float | None:
    return sum(values) / len(values) if values else None
