"""What a supervisor is made from; Ray makes it again from the same.

Invariant: nothing in here changes but by tasks that join while the run is live.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl_cluster.config import RunConfig
from rl_cluster.effective import EffectiveConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.machine import Machine


@dataclass(frozen=True)
class RunPlan:
    """What a run is made from."""

    name: str
    run_dir: Path
    effective: EffectiveConfig
    """Tasks that were added live included."""
    specs: dict[str, EnvironmentSpec]
    tracker_ids: dict[str, str]
    machine: Machine
    most_games: int
    """Tasks that fit the machine's memory at once."""
    object_store_bytes: int

    @property
    def config(self) -> RunConfig:
        """Effective configuration."""
        return self.effective.config
