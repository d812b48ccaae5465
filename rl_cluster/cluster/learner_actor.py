"""Shell of the learner: the loop, what a person may ask of it, checkpoints, publication.

Invariant: everything that reads or changes the learner from outside happens between two steps, on
the loop's own thread. The loop never waits for anyone: no batch means a short wait and another
look.
"""

from __future__ import annotations

import logging
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

from rl_cluster.algorithm import batch_memory, block_source, checkpoint_schema, warmed_agent
from rl_cluster.cluster import names
from rl_cluster.cluster.actors import Actor, ask, cause_of, read
from rl_cluster.cluster.messages import Candidate, LearnerStatus, ReplayState, StopReport, notice
from rl_cluster.cluster.publisher import WeightsPublisher
from rl_cluster.cluster.replay_client import ReplayClient
from rl_cluster.cluster.saves import TaskSaves
from rl_cluster.cluster.skips import Skips
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import LearnerConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.evaluation import Best
from rl_cluster.fence import Fence
from rl_cluster.gpu_memory import reserve_learner
from rl_cluster.learner import Agent, Learner, StepReport
from rl_cluster.replay.gather import BlockSource
from rl_cluster.replay.sequences import SequenceBlocks
from rl_cluster.supervision.health import Health

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_COMMAND_TIMEOUT_S = 60.0
_REPLAY_STATE_TIMEOUT_S = 2.0
_IDLE_S = 1.0
_SAVE_AGAIN_S = (1.0, 5.0)
"""First and longest pause between two tries to save before leaving."""


class LearnerActor:
    """Learner of one task."""

    def __init__(
        self,
        task: str,
        config: TaskConfig,
        spec: EnvironmentSpec,
        run_dir: str,
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
        self._task, self._config, self._spec = task, config, spec
        self._replay, self._weights = replay, weights
        self._reply_timeout_s = reply_timeout_s
        self._publisher = WeightsPublisher(weights, task, fence.epoch)
        self._saves = TaskSaves(Path(run_dir), task, config, fence, tracker_id)
        self._commands: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._notices: list[dict[str, str]] = []
        self._replay_state: ReplayState | None = None
        self._newest: StepReport | None = None
        self._skips = Skips()
        self._paused, self._stopping = False, False
        self._waited_s, self._waited_since_s = 0.0, time.monotonic()
        self._asked_s = 0.0
        """Time spent on asking for batches since the last one came."""
        self._saved_at_s = time.monotonic()
        # What holds the device's memory is made there: others may have to be waited for.
        self._learner: Learner
        self._source: ReplayClient
        self._vitals.keep(self._run, "learner")

    @once_made
    def __repr__(self) -> str:
        """Name, state, policy version and speed; before the learner is made, it has neither."""
        name, learner = names.learner_name(self._task), vars(self).get("_learner")
        if learner is None:
            return self._vitals.line(name)
        counters = learner.counters
        speed = f"{self._vitals.per_s(counters.updates):.1f} updates/s"
        return self._vitals.line(name, f"policy {counters.policy_version}", speed)

    def health(self) -> Health:
        """Say how the work goes on; answered beside it."""
        return self._vitals.report()

    def change(self, config: TaskConfig) -> None:
        """Take other live settings from the next step on."""
        self._between_steps(lambda: self._take_settings(config))

    def _run(self) -> None:
        """Learn until `stop`; what was learned is saved when replay is lost, too."""
        self._make()
        self._restore()
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
            self._saves.close()

    def status(self) -> LearnerStatus:
        """Figures of the newest step, and totals.

        Answered between two steps, so an answer shows that the loop moves.
        """
        return self._between_steps(self._figures)

    def pause(self) -> None:
        """Take no further step until `resume`."""
        self._between_steps(lambda: self._rest(True))

    def resume(self) -> None:
        """Go on learning."""
        self._between_steps(lambda: self._rest(False))

    def checkpoint(self) -> str | None:
        """Save now; return the checkpoint's path, None where saving failed."""
        path = self._between_steps(self._save)
        return None if path is None else str(path)

    def candidate(self) -> Candidate | None:
        """Save now and keep that checkpoint until it is evaluated."""
        return self._between_steps(self._save_candidate)

    def take_best(self, best: Best) -> bool:
        """Keep the best checkpoint; False: it has to be asked for again."""
        return self._between_steps(lambda: self._saves.take_best(best))

    def stop(self, save_again_s: float = 0.0) -> StopReport:
        """Save and leave the loop; what is published stays.

        While saving fails, it goes on learning and tries again, for `save_again_s`, and leaves then
        all the same.
        """
        deadline_s = time.monotonic() + save_again_s
        pause_s, longest_s = _SAVE_AGAIN_S
        while (report := self._between_steps(lambda: self._leave(deadline_s))) is None:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        return report

    def _make(self) -> None:
        """Make agent and memory of batches, once the device has room for them."""
        config, spec, device = self._config, self._spec, torch.device(self._config.learner.device)
        schema = checkpoint_schema(config, spec)

        def make(settings: LearnerConfig) -> tuple[Agent, BlockSource[Any] | SequenceBlocks]:
            agent = warmed_agent(config, settings, spec, device)
            return agent, block_source(config, spec, device)

        def say(shortage: str) -> None:
            self._vitals.progress()  # as long as it looks, it is no hang
            _log.warning("%s", shortage)

        reserved = reserve_learner(config, spec, device, make, say)
        if reserved.reason is not None:
            action = f"gradients of {reserved.micro_batch} transitions at once are accumulated"
            self._notices.append(notice("gpu_fallback", reserved.reason, action))
        agent, blocks = reserved.made
        period = config.learner.publish_period
        learner = Learner(agent, device, period, self._publisher.publish, schema)
        self._learner = learner
        self._source = ReplayClient(
            self._replay,
            blocks,
            lambda: learner.counters,
            self._reply_timeout_s,
            learner.steps_ahead,
            batch_memory(config, device),
        )

    def _leave(self, deadline_s: float) -> StopReport | None:
        """None: it is not saved, and there is time to try again."""
        saved = self._save() is not None
        if not saved and time.monotonic() < deadline_s:
            return None
        self._stopping = True
        return StopReport(self._figures(), saved)

    def _figures(self) -> LearnerStatus:
        now_s = time.monotonic()
        share = self._waited_s / max(1e-9, now_s - self._waited_since_s)
        self._waited_s, self._waited_since_s = 0.0, now_s
        skipped = self._skips.take_notices(self._learner.counters.skipped_batches)
        notices = [*self._notices, *self._saves.take_notices(), *skipped]
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
            checkpoint_s=self._saves.newest_s,
            uploaded_updates=self._saves.uploaded_updates,
            request_age_s=None if self._paused else self._asked_s,
            others=dict(newest.others) if newest is not None else {},
            notices=tuple(notices),
        )

    def _advance(self) -> None:
        start_s = time.monotonic()
        batch = self._source.next(timeout_s=0.05)
        asked_s = time.monotonic() - start_s
        self._waited_s += asked_s
        self._asked_s = self._asked_s + asked_s if batch is None else 0.0
        # Without a batch, what is under way on a device is soon known: it need not wait for one.
        self._take(self._learner.finish() if batch is None else self._learner.step(batch))
        self._vitals.in_vain = self._learner.in_vain
        self._learner.check_learns(self._config.learner.max_skipped_batches)
        due = time.monotonic() - self._saved_at_s >= self._config.checkpoint.period_s
        # Not while batches are skipped: it may have diverged, and what is saved has not.
        if due and self._learner.skipped_in_a_row == 0:
            self._save()

    def _take(self, reports: list[StepReport]) -> None:
        for report in reports:
            if report.td_errors is None:
                self._skips.add(report)
                if report.spoiled is not None:  # or they, never learned from, stay at the top
                    nothing = np.zeros(len(report.spoiled.rows), np.float32)
                    self._source.report(report.spoiled, nothing)
            else:
                self._newest = report
                self._source.report(report.sample, report.td_errors)

    def _restore(self) -> None:
        """Continue from the newest whole checkpoint, above every version ever published."""
        self._replay_state = self._saves.restore(self._learner)
        counters = self._learner.counters
        published: int = ask(lambda: self._weights.version.remote(self._task), _COMMAND_TIMEOUT_S)
        if published >= 0:  # the one before us may have died with one more on its way
            counters.policy_version = max(counters.policy_version, published + 1)

    def _rest(self, paused: bool) -> None:
        self._paused, self._asked_s = paused, 0.0

    def _take_settings(self, config: TaskConfig) -> None:
        self._config = config
        self._learner.change(config.learner)

    def _save(self) -> Path | None:
        with self._vitals.phase("saving"):
            self._saved_at_s = time.monotonic()
            self._take(self._learner.finish())
            return self._saves.save(self._learner, self._newest_replay_state(), self._config)

    def _save_candidate(self) -> Candidate | None:
        path = self._save()
        if path is None:
            return None
        return self._saves.candidate(path, self._learner.counters.updates)

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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
