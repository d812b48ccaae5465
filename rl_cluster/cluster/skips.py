"""What a learner says of batches that it skipped: one notice for all since the last, and the end.

Invariant: that they are over is said once, when for a while every batch was learned from.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rl_cluster.cluster.messages import notice
from rl_cluster.learner import StepReport

_OVER_S = 60.0


class Skips:
    """Skipped batches of one learner.

    Args:
      clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._untold: StepReport | None = None
        self._newest_s: float | None = None

    def add(self, report: StepReport) -> None:
        """Take in a batch that was skipped."""
        self._untold, self._newest_s = report, self._clock()

    def take_notices(self, total: int) -> list[dict[str, str]]:
        """What there is to say, with `total` batches skipped so far."""
        detail = f"{total} in all"
        if self._untold is not None:
            cause = self._untold.skipped_cause
            nature = "loss" if self._untold.spoiled is None else "data"
            self._untold = None
            return [notice("batch_skipped", cause, "skipped whole", detail, nature)]
        if self._newest_s is None or self._clock() - self._newest_s < _OVER_S:
            return []
        self._newest_s = None
        cause = f"no batch was skipped for {_OVER_S:.0f} s"
        return [notice("batches_finite", cause, "training goes on", detail)]
