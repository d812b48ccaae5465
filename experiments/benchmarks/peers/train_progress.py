"""What a peer's training program has done so far, written down for the benchmark.

Runs in every peer's environment, so it needs nothing but Python and torch. Invariant: an update is
one step of any torch optimizer in this process, counted by torch itself, whichever library takes
it; environment steps are counted by the peer's script, in the agent's steps (four frames each). A
line is written only at the first step after an update, so that two lines are whole rounds apart.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

PERIOD_S = 0.25
"""A line at most so often; the peer pays one comparison a step for it."""


class Progress:
    """Counts, with a line of JSON every so often: {"time", "env_steps", "learner_updates"}.

    Args:
      path: file that receives the lines.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._updates, self._written, self._due_s = 0, 0, 0.0
        register_optimizer_step_post_hook(self._updated)

    def reached(self, env_steps: int) -> None:
        """Take the number of environment steps since the start."""
        now_s = time.time()
        if now_s < self._due_s or self._updates == self._written:
            return
        self._due_s, self._written = now_s + PERIOD_S, self._updates
        counts = {"time": now_s, "env_steps": env_steps, "learner_updates": self._updates}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")

    def _updated(self, *_: Any) -> None:
        self._updates += 1
