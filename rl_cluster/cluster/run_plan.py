"""What a supervisor is made from; Ray makes it again from the same.

Invariant: nothing in here changes but by tasks that join while the run is live. A supervisor that
Ray makes again takes those in from what the run's directory says (`take_in`).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_cluster.algorithm import checkpoint_schema, specify
from rl_cluster.checkpoint import CheckpointError, CheckpointStore
from rl_cluster.config import RunConfig
from rl_cluster.config_file import from_mapping
from rl_cluster.control import Control
from rl_cluster.effective import EffectiveConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.machine import Machine
from rl_cluster.preparation import PreparedRun

_log = logging.getLogger(__name__)


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
    """What the object store holds at most, of others' runs, too, on a cluster of others."""
    session: str | None
    """Of the run, for which this was made."""
    added: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of the tasks that had joined when this was made."""

    @property
    def config(self) -> RunConfig:
        """Effective configuration."""
        return self.effective.config

    @property
    def has_own_cluster(self) -> bool:
        """Whether the run's keeper made the cluster, and can make another."""
        return self.config.cluster.address == "local"

    def take_in(self, added: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the tasks that joined since the plan was made, from their settings."""
        for task, settings in added.items():
            if self.added.get(task) != settings:
                config = from_mapping({"tasks": {task: settings}}).tasks[task]
                spec = specify(config)
                try:
                    tracker_id = _tracker_id(self.run_dir / task, checkpoint_schema(config, spec))
                except CheckpointError as error:
                    tracker_id = _left_to_its_learner(task, error)
                self.config.tasks[task], self.specs[task] = config, spec
                self.tracker_ids[task], self.added[task] = tracker_id, settings


def plan_of(
    prepared: PreparedRun, run_dir: Path, added: Mapping[str, Mapping[str, Any]]
) -> RunPlan:
    """The plan of a run that may start, in its directory; `added` are part of it.

    A task whose checkpoints are refused is left to its learner, which fails, and is parked with
    the reason while the others go on.

    Raises:
      CheckpointError: those of every task are refused.
    """
    config, tracker_ids, refused = prepared.effective.config, {}, []
    for task, spec in prepared.specs.items():
        try:
            schema = checkpoint_schema(config.tasks[task], spec)
            tracker_ids[task] = _tracker_id(run_dir / task, schema)
        except CheckpointError as error:
            refused.append(error)
            tracker_ids[task] = _left_to_its_learner(task, error)
    if len(refused) == len(tracker_ids):
        raise refused[0]
    return RunPlan(
        name=run_dir.name,
        run_dir=run_dir,
        effective=prepared.effective,
        specs=prepared.specs,
        tracker_ids=tracker_ids,
        machine=prepared.machine,
        most_games=prepared.most_games,
        object_store_bytes=prepared.store_capacity_bytes,
        session=(Control(run_dir).read("session") or {}).get("id"),
        added=dict(added),
    )


def _left_to_its_learner(task: str, error: CheckpointError) -> str:
    _log.error("%s: %s", task, error)
    return uuid.uuid4().hex[:12]


def _tracker_id(task_dir: Path, schema: dict[str, Any]) -> str:
    """The identity at trackers that the newest checkpoint holds, or a new one."""
    loaded = CheckpointStore(task_dir / "checkpoints", keep=1).load_latest(schema)
    return str(loaded.checkpoint.state["tracker_id"]) if loaded else uuid.uuid4().hex[:12]
