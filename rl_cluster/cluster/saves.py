"""What a learner leaves behind: checkpoints, the best of them, copies of them elsewhere.

Invariant: whatever fails here becomes a notice and training goes on, but for a fence that says that
another learner has taken this one's place.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_cluster.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from rl_cluster.cluster.messages import Candidate, ReplayState, notice
from rl_cluster.config import TaskConfig
from rl_cluster.config_file import task_mapping
from rl_cluster.evaluation import Best
from rl_cluster.fence import Fence
from rl_cluster.learner import Learner
from rl_cluster.upload import Uploader

_UPLOAD_CLOSE_S = 2.0


class TaskSaves:
    """The checkpoints of one task, as its learner writes them.

    Args:
      run_dir: of the run. task: its name. config: of the task. fence: of the learner's place.
      tracker_id: of the task at trackers, unless a checkpoint holds one.
    """

    def __init__(
        self, run_dir: Path, task: str, config: TaskConfig, fence: Fence, tracker_id: str
    ) -> None:
        settings = config.checkpoint
        self._store = CheckpointStore(run_dir / task / "checkpoints", settings.keep, fence)
        self._uploader = (
            Uploader(settings.upload, run_dir.name, task, settings.keep)
            if settings.upload
            else None
        )
        self._tracker_id = tracker_id
        self._notices: list[dict[str, str]] = []
        self._failures: int | None = None
        self.best: Best | None = None
        """Best evaluation that the learner knows of."""
        self.newest_s: float | None = None
        """What the newest checkpoint took."""
        self.uploaded_updates: int | None = None
        """Learner updates of the newest checkpoint that is whole elsewhere, too."""

    def restore(self, learner: Learner) -> ReplayState | None:
        """Continue from the newest whole checkpoint; return the replay's state in it.

        Raises:
          CheckpointError: every one is refused, or it is of another architecture.
        """
        loaded = self._store.load_latest(learner.schema)
        if loaded is None:
            return None
        learner.restore(loaded.checkpoint)
        state = loaded.checkpoint.state
        self.best = Best(**state["best"]) if state["best"] else None
        self._tracker_id = state["tracker_id"]
        self._notices += [
            notice("checkpoint_refused", str(error), f"used {loaded.path.name}")
            for error in loaded.refused
        ]
        return _replay_state(loaded.checkpoint)

    def save(self, learner: Learner, replay: ReplayState | None, config: TaskConfig) -> Path | None:
        """Write a checkpoint; None where that failed.

        Raises:
          StaleEpoch: another learner has this one's place.
        """
        start_s = time.monotonic()
        extra: dict[str, Any] = {
            "replay": replay.counters if replay else None,
            "best": asdict(self.best) if self.best else None,
            "tracker_id": self._tracker_id,
            "settings": task_mapping(config),
        }
        try:
            path = self._store.save(learner.checkpoint(extra, _replay_tensors(replay)))
        except CheckpointError as error:
            self._note_failure(error)
            return None
        self._note_success(path)
        self.newest_s = time.monotonic() - start_s
        if self._uploader is not None:
            self._uploader.offer(path)
        return path

    def _note_failure(self, error: CheckpointError) -> None:
        self._failures = (self._failures or 0) + 1
        action, why = "training goes on; the next is tried when it is due", error.__cause__
        nature = str(why.errno) if isinstance(why, OSError) else ""
        self._notices.append(notice("checkpoint_failed", str(error), action, nature=nature))

    def _note_success(self, path: Path) -> None:
        """The first of a life is noted, too: those of the life before may have failed."""
        if self._failures != 0:
            failed = f"; {self._failures} in a row had failed" if self._failures else ""
            cause = f"{path.parent} can be written again{failed}"
            self._notices.append(notice("checkpoint_resumed", cause, f"{path.name} is saved"))
        self._failures = 0

    def candidate(self, path: Path, step: int) -> Candidate:
        """Keep a checkpoint until it is evaluated."""
        self._store.mark_candidate(step)
        return Candidate(str(path), step, self.best)

    def take_best(self, best: Best) -> bool:
        """Keep the checkpoint that earned it until another is better.

        Returns:
          Whether that is settled; False: the disk refused, so it has to be asked for again.
        """
        if self.best is not None and self.best.mean_return >= best.mean_return:
            return True
        try:
            path = self._store.mark_best(best.step)
        except CheckpointError as error:
            is_gone = not isinstance(error.__cause__, OSError)
            action = "the best one before stands" if is_gone else "tried again"
            self._notices.append(notice("best_not_kept", str(error), action))
            return is_gone
        self.best = best
        if self._uploader is not None:
            self._uploader.offer_best(path)
        return True

    def take_notices(self) -> list[dict[str, str]]:
        """Incidents since the last call."""
        if self._uploader is not None:
            for report in self._uploader.take_reports():
                if report.error is None:
                    self.uploaded_updates = report.step
                else:
                    action = "the checkpoint here stands; the next is tried"
                    self._notices.append(notice("upload_failed", report.error, action, report.url))
        notices, self._notices = self._notices, []
        return notices

    def close(self) -> None:
        """Let an upload that is nearly done finish."""
        if self._uploader is not None:
            self._uploader.close(_UPLOAD_CLOSE_S)


def _replay_tensors(state: ReplayState | None) -> dict[str, torch.Tensor]:
    """The arrays of a replay's state, under their names in a checkpoint."""
    if state is None:
        return {}
    arrays = {"replay.block_ids": state.block_ids, "replay.priorities": state.priorities}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _replay_state(checkpoint: Checkpoint) -> ReplayState | None:
    """The replay's state in a checkpoint; one of an earlier version holds no priorities."""
    counters, tensors = checkpoint.state["replay"], checkpoint.optimizer
    if counters is None:
        return None
    if "replay.block_ids" not in tensors:
        return ReplayState(counters, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    ids, priorities = tensors["replay.block_ids"], tensors["replay.priorities"]
    return ReplayState(counters, ids.numpy(), priorities.numpy())
