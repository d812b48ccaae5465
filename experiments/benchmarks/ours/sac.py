"""Our SAC's update as the side of B12, on one thread; the limit is the trunk alone.

The limit are the passes through the trunk that no such update can do without: one with a gradient
for the states, one for their successors, and one of the target.

Asked: network (of `sac_seen.SHAPES`).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from sac_seen import SETTINGS, batches, shape_of
from serve import arguments, serve

from rl_cluster.agents.sac import SAC


class Ours:
    """The agent and its batches."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        shape = shape_of(asked["network"])
        self._agent = SAC(SETTINGS, shape, torch.device("cpu"))
        every = batches(shape)
        self._batches, self._steps = itertools.cycle(every), itertools.count()
        torch.manual_seed(1)
        # Half of the squared errors' mean, which is CleanRL's loss over both critics.
        self._first_loss = 2 * self._agent.update(every[0], next(self._steps)).loss

    def update(self) -> float:
        """One update."""
        self._agent.update(next(self._batches), next(self._steps))
        return 1.0

    def passes(self) -> float:
        """The trunk's passes of one update."""
        seen = next(self._batches).observations
        trunk = self._agent.critic.flat.network.trunk
        torch.autograd.grad(trunk.see(seen[:, 0]).sum(), list(trunk.parameters()))
        with torch.no_grad():
            trunk.see(seen[:, 1])
            self._agent.target.network.trunk.see(seen[:, 1])
        return 1.0

    def facts(self) -> dict[str, Any]:
        """The critics' loss in the first update."""
        return {"first_loss": self._first_loss}


if __name__ == "__main__":
    ours = Ours(arguments())
    serve(ours.update, ("rl-cluster", "torch"), ours.facts, limit=ours.passes)
