"""One ratio couples collection and learning: samples per insert, held from both sides.

Reverb's rule (Cassirer et al. 2021, section 3.4): with `balance` = inserts × ratio - samples,
counted from the end of warm-up, sampling may not take the balance below 0 and inserting may not
take it above `slack`. Invariant: once warm, 0 <= balance <= slack whatever the two sides' speeds;
so samples are within slack of inserts × ratio, and neither side can run away from the other.
"""

from __future__ import annotations


class RateLimiter:
    """Says who may go on.

    Args:
      samples_per_insert: transitions sampled for each one inserted.
      min_transitions: inserts before the first sample (warm-up, not counted in the ratio).
      slack_samples: how far samples may lag behind inserts.
    """

    def __init__(
        self, samples_per_insert: float, min_transitions: int, slack_samples: float
    ) -> None:
        self.samples_per_insert = samples_per_insert
        self.min_transitions = min_transitions
        self._slack = slack_samples
        self.inserts = 0
        self.samples = 0

    @property
    def warm(self) -> bool:
        """Warm-up is over."""
        return self.inserts >= self.min_transitions

    @property
    def balance(self) -> float:
        """Samples owed to the inserts since warm-up."""
        return (self.inserts - self.min_transitions) * self.samples_per_insert - self.samples

    @property
    def actual(self) -> float | None:
        """Samples per insert since warm-up; None before it."""
        counted = self.inserts - self.min_transitions
        return self.samples / counted if counted > 0 else None

    def may_insert(self, transitions: int) -> bool:
        """Whether so many more inserts, counting those under way, keep the balance."""
        return self.balance + transitions * self.samples_per_insert <= self._slack

    def may_sample(self, transitions: int) -> bool:
        """Whether so many samples keep the balance."""
        return self.warm and self.balance >= transitions

    def insert(self, transitions: int) -> None:
        """Count inserts."""
        self.inserts += transitions

    def sample(self, transitions: int) -> None:
        """Count samples."""
        self.samples += transitions
