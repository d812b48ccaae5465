"""One ratio couples collection and learning: samples per insert, held from both sides.

Reverb's rule (Cassirer et al. 2021, section 3.4): with `balance` = inserts × ratio - samples,
counted from the end of warm-up, sampling may not take the balance below 0 and inserting may not
take it above `slack`. Invariant: once warm, 0 <= balance <= slack whatever the two sides' speeds;
so samples are within slack of inserts × ratio, and neither side can run away from the other. Where
the ratio changes, counting begins anew with what was owed: the past is never charged again.
"""

from __future__ import annotations

from collections.abc import Mapping


class RateLimiter:
    """Says who may go on.

    Args:
      samples_per_insert: transitions sampled for each one inserted.
      min_transitions: inserts before the first sample (warm-up, not counted in the ratio).
      slack_samples: how far samples may lag behind inserts.
      holds_inserts: inserts wait for samples; where they cannot, as experience from outside, what
        samples lag further behind than the slack is forgiven, and the ratio falls below the wanted.
    """

    def __init__(
        self,
        samples_per_insert: float,
        min_transitions: int,
        slack_samples: float,
        holds_inserts: bool = True,
    ) -> None:
        self.samples_per_insert, self._holds_inserts = samples_per_insert, holds_inserts
        self.min_transitions = min_transitions
        self._slack = slack_samples
        self.inserts = 0
        self.samples = 0
        self._inserts_before, self._samples_before, self._owed_before = min_transitions, 0, 0.0

    @property
    def warm(self) -> bool:
        """Warm-up is over."""
        return self.inserts >= self.min_transitions

    @property
    def balance(self) -> float:
        """Samples owed to the inserts since warm-up."""
        inserts = self.inserts - self._inserts_before
        samples = self.samples - self._samples_before
        return self._owed_before + inserts * self.samples_per_insert - samples

    @property
    def actual(self) -> float | None:
        """Samples per insert since warm-up or the last change; None before either."""
        counted = self.inserts - self._inserts_before
        return (self.samples - self._samples_before) / counted if counted > 0 else None

    def may_insert(self, transitions: int) -> bool:
        """Whether so many more inserts, counting those under way, keep the balance."""
        if not self._holds_inserts:
            return True
        return self.balance + transitions * self.samples_per_insert <= self._slack

    def may_sample(self, transitions: int) -> bool:
        """Whether so many samples keep the balance."""
        return self.warm and self.balance >= transitions

    def insert(self, transitions: int) -> None:
        """Count inserts."""
        self.inserts += transitions
        if not self._holds_inserts and self.warm:
            self._owed_before -= max(0.0, self.balance - self._slack)

    def sample(self, transitions: int) -> None:
        """Count samples."""
        self.samples += transitions

    def change(
        self, samples_per_insert: float, slack_samples: float, inserts_under_way: int
    ) -> None:
        """Hold another ratio from now on.

        What is owed stays owed, up to what the new slack has room for beside the inserts that were
        allowed before and are still to come; so neither side waits long or is owed thousands.

        Args:
          samples_per_insert: transitions sampled for each one inserted.
          slack_samples: how far samples may lag behind inserts; at least
            `inserts_under_way` × `samples_per_insert`.
          inserts_under_way: transitions that collectors were sent for and have not brought.
        """
        if self.warm:
            room = slack_samples - inserts_under_way * samples_per_insert
            self._owed_before = max(0.0, min(self.balance, room))
            self._inserts_before, self._samples_before = self.inserts, self.samples
        self.samples_per_insert, self._slack = samples_per_insert, slack_samples

    def state(self) -> dict[str, float]:
        """JSON state: what was counted, and from where on."""
        return {
            "inserts": self.inserts,
            "samples": self.samples,
            "inserts_before": self._inserts_before,
            "samples_before": self._samples_before,
            "owed_before": self._owed_before,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on counting where another limiter of the same ratio was."""
        self.inserts, self.samples = int(state["inserts"]), int(state["samples"])
        self._inserts_before = int(state["inserts_before"])
        self._samples_before = int(state["samples_before"])
        self._owed_before = float(state["owed_before"])
