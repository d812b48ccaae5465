"""Shell of the learner: the loop, what a person may ask of it, checkpoints, publication.

Invariant: everything that reads or changes the learner from outside happens between two steps, on
the loop's own thread. The loop never waits for anyone: no batch means a short wait and another
look.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ray.exceptions import RayError

from rl_cluster.agents.captured import on_device, page_locked
from rl_cluster.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from rl_cluster.cluster.actors import Actor, cause_of, read
from rl_cluster.cluster.messages import Candidate, LearnerStatus, ReplayState, StopReport, notice
from rl_cluster.cluster.publisher import WeightsPublisher
from rl_cluster.cluster.replay_client import ReplayClient
from rl_cluster.cluster.vitals import Vitals
from rl_cluster.config import TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.evaluation import Best
from rl_cluster.fence import Fence
from rl_cluster.learner import Learner, StepReport, build_agent, checkpoint_schema
from rl_cluster.replay.gather import MappedBlocks
from rl_cluster.replay.transitions import TransitionRule
from rl_cluster.resident import ResidentBlocks, resident_places
from rl_cluster.supervision.health import Health

_Answer = TypeVar("_Answer")
_COMMAND_TIMEOUT_S = 60.0
_REPLAY_STATE_TIMEOUT_S = 2.0
_IDLE_S = 1.0


class LearnerActor:
    """Learner of one task."""

    def __init__(
        self,
        task: str,
        config: TaskConfig,
        spec: EnvironmentSpec,
        task_dir: str,
        seed: int,
        replay: Actor,
        weights: Actor,
        tracker_id: str,
        reply_timeout_s: float,
        fence: Fence,
    ) -> None:
        self._vitals = Vitals(fence.epoch, "starting")
        torch.set_num_threads(1)  # the agent's own threads take whole parts of a batch
        torch.manual_seed(seed)
        self._task, self._config = task, config
        self._replay, self._weights, self._tracker_id = replay, weights, tracker_id
        device = torch.device(config.learner.device)
        self._publisher = WeightsPublisher(weights, task, fence.epoch)
        self._learner = Learner(
            build_agent(config.agent, config.learner, spec, device),
            device,
            config.learner.publish_period,
            self._publisher.publish,
            checkpoint_schema(config.agent, spec),
        )
        self._source = self._replay_client(spec, device, reply_timeout_s)
        self._store = CheckpointStore(Path(task_dir) / "checkpoints", config.checkpoint.keep, fence)
        self._commands: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._notices: list[dict[str, str]] = []
        self._replay_state: ReplayState | None = None
        self._best: Best | None = None
        self._newest: StepReport | None = None
        self._skipped: StepReport | None = None
        self._paused, self._stopping = False, False
        self._waited_s, self._waited_since_s = 0.0, time.monotonic()
        self._checkpoint_s: float | None = None
        self._saved_at_s = time.monotonic()
        self._restore()
        self._vitals.keep(self._run, "learner")

    def health(self) -> Health:
        """Say how the work goes on; answered beside it."""
        return self._vitals.report()

    def change(self, config: TaskConfig) -> None:
        """Take other live settings from the next step on."""
        self._between_steps(lambda: self._take_settings(config))

    def _run(self) -> None:
        """Learn until `stop`; what was learned is saved when replay is lost, too."""
        read(self._replay.attach.remote(self._replay_state), _COMMAND_TIMEOUT_S)
        self._save()
        self._learner.publish()
        self._source.start()
        self._vitals.enter("working")
        try:
            while not self._stopping:
                self._vitals.progress()
                self._obey()
                if not self._stopping:
                    self._advance()
        except RayError:
            self._save()
            raise
        finally:
            self._source.close()

    def status(self) -> LearnerStatus:
        """Figures of the newest step, and totals.

        Answered between two steps, so an answer shows that the loop moves.
        """
        return self._between_steps(self._figures)

    def pause(self) -> None:
        """Take no further step until `resume`."""
        self._between_steps(lambda: setattr(self, "_paused", True))

    def resume(self) -> None:
        """Go on learning."""
        self._between_steps(lambda: setattr(self, "_paused", False))

    def checkpoint(self) -> str | None:
        """Save now; return the checkpoint's path, None where saving failed."""
        path = self._between_steps(self._save)
        return None if path is None else str(path)

    def candidate(self) -> Candidate | None:
        """Save now and keep that checkpoint until it is evaluated."""
        return self._between_steps(self._save_candidate)

    def evaluated(self, step: int, best: Best | None) -> None:
        """Hear of an evaluation; `best` is given where checkpoint `step` is the new best."""
        self._between_steps(lambda: self._take_evaluation(step, best))

    def stop(self) -> StopReport:
        """Save and leave the loop; what is published stays."""
        return self._between_steps(self._leave)

    def _replay_client(
        self, spec: EnvironmentSpec, device: torch.device, reply_timeout_s: float
    ) -> ReplayClient[torch.Tensor] | ReplayClient[np.ndarray]:
        agent, learner = self._config.agent, self._learner
        rule = TransitionRule(agent.frame_stack, agent.n_step, agent.discount, agent.reward_clip)
        length = self._config.rollout.block_length
        if device.type == "cuda" and self._config.learner.resident_share > 0:
            places = resident_places(self._config)
            return ReplayClient(
                self._replay,
                ResidentBlocks(rule, length, places, spec.obs_shape, spec.obs_dtype, device),
                lambda: learner.counters,
                reply_timeout_s,
                learner.steps_ahead,
                on_device(device),
            )
        return ReplayClient(
            self._replay,
            MappedBlocks(rule, length),
            lambda: learner.counters,
            reply_timeout_s,
            learner.steps_ahead,
            page_locked if device.type == "cuda" else np.empty,
        )

    def _leave(self) -> StopReport:
        self._stopping = True
        saved = self._save() is not None
        return StopReport(self._figures(), saved)

    def _figures(self) -> LearnerStatus:
        now_s = time.monotonic()
        share = self._waited_s / max(1e-9, now_s - self._waited_since_s)
        self._waited_s, self._waited_since_s = 0.0, now_s
        notices = [*self._notices, *self._skips()]
        self._notices = []
        newest = self._newest
        td_errors = None if newest is None else newest.td_errors
        return LearnerStatus(
            **asdict(self._learner.counters),
            paused=self._paused,
            loss=_finite(None if newest is None else newest.loss),
            td_error_abs_mean=None if td_errors is None else float(np.abs(td_errors).mean()),
            q_mean=_finite(None if newest is None else newest.q_mean),
            gradient_norm=_finite(None if newest is None else newest.gradient_norm),
            learning_rate=_finite(None if newest is None else newest.learning_rate),
            wait_share=min(1.0, share),
            publish_ms=self._publisher.newest_ms,
            checkpoint_s=self._checkpoint_s,
            notices=tuple(notices),
        )

    def _skips(self) -> list[dict[str, str]]:
        """One notice for all batches skipped since the last."""
        if self._skipped is None:
            return []
        total = self._learner.counters.skipped_batches
        cause = (
            f"{self._skipped.skipped_because}; blocks of {', '.join(self._skipped.skipped_sources)}"
        )
        self._skipped = None
        return [notice("batch_skipped", cause, "skipped whole", f"{total} in all")]

    def _advance(self) -> None:
        start_s = time.monotonic()
        batch = self._source.next(timeout_s=0.05)
        self._waited_s += time.monotonic() - start_s
        # Without a batch, what is under way on a device is soon known: it need not wait for one.
        self._take(self._learner.finish() if batch is None else self._learner.step(batch))
        if time.monotonic() - self._saved_at_s >= self._config.checkpoint.period_s:
            self._save()

    def _take(self, reports: list[StepReport]) -> None:
        for report in reports:
            if report.td_errors is None:
                self._skipped = report
            else:
                self._newest = report
                self._source.report(report.sample, report.td_errors)

    def _restore(self) -> None:
        """Continue from the newest whole checkpoint, above every version ever published."""
        loaded = self._store.load_latest(self._learner.schema)
        if loaded is not None:
            self._learner.restore(loaded.checkpoint)
            state = loaded.checkpoint.state
            self._replay_state = _replay_state(loaded.checkpoint)
            self._best = Best(**state["best"]) if state["best"] else None
            self._tracker_id = state["tracker_id"]
            self._notices += [
                notice("checkpoint_refused", str(error), f"used {loaded.path.name}")
                for error in loaded.refused
            ]
        counters = self._learner.counters
        published: int = read(self._weights.version.remote(self._task), _COMMAND_TIMEOUT_S)
        counters.policy_version = max(counters.policy_version, published)

    def _take_settings(self, config: TaskConfig) -> None:
        self._config = config
        self._learner.change(config.learner)

    def _save(self) -> Path | None:
        with self._vitals.phase("saving"):
            return self._saved()

    def _saved(self) -> Path | None:
        start_s = self._saved_at_s = time.monotonic()
        self._take(self._learner.finish())
        replay = self._newest_replay_state()
        extra = {
            "replay": replay.counters if replay else None,
            "best": asdict(self._best) if self._best else None,
            "tracker_id": self._tracker_id,
        }
        try:
            path = self._store.save(self._learner.checkpoint(extra, _replay_tensors(replay)))
        except CheckpointError as error:
            self._notices.append(notice("checkpoint_failed", str(error), "training goes on"))
            return None
        self._checkpoint_s = time.monotonic() - start_s
        return path

    def _save_candidate(self) -> Candidate | None:
        path = self._save()
        if path is None:
            return None
        step = self._learner.counters.updates
        self._store.mark_candidate(step)
        return Candidate(str(path), step, self._best)

    def _take_evaluation(self, step: int, best: Best | None) -> None:
        if best is not None:
            self._store.mark_best(step)
            self._best = best

    def _newest_replay_state(self) -> ReplayState | None:
        """The replay's state, or the last one known where it does not answer in time."""
        try:
            self._replay_state = read(self._replay.state.remote(), _REPLAY_STATE_TIMEOUT_S)
        except RayError as error:
            self._notices.append(
                notice("replay_silent", cause_of(error), "saved with its last known state")
            )
        return self._replay_state

    def _between_steps(self, command: Callable[[], _Answer]) -> _Answer:
        future: Future[_Answer] = Future()
        self._commands.put((command, future))
        return future.result(timeout=_COMMAND_TIMEOUT_S)

    def _obey(self) -> None:
        """Do what was asked for; while paused, wait for the next."""
        while not self._stopping and (self._paused or not self._commands.empty()):
            self._vitals.progress()
            try:
                command, future = self._commands.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            try:
                future.set_result(command())
            except Exception as error:  # noqa: BLE001 - thread boundary: raised again there
                future.set_exception(error)


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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
