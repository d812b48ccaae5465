"""Shell of the reader: brings rovers' experience to replay, as blocks, in a rollout's place.

Invariant: blocks are return values of replay's calls, so replay owns them; a message is
acknowledged when replay says that all of its blocks are kept. A server that is away is waited for,
and a fleet that is silent is no failure: both are said.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rl_cluster.cluster import names
from rl_cluster.cluster.messages import notice
from rl_cluster.cluster.parcels import Collected
from rl_cluster.cluster.vitals import Vitals, once_made
from rl_cluster.config import TaskConfig
from rl_cluster.field_report import FieldScores, save_view, write_status
from rl_cluster.fleet_settings import stream_settings, stream_url
from rl_cluster.policy_shelf import PolicyShelf
from rl_cluster.replay.block import Block
from rl_cluster.rollout import CollectReport, FinishedGame
from rl_cluster.streams.codec import DecodeLimits, decode_experience
from rl_cluster.streams.episodes import FinishedEpisode
from rl_cluster.streams.fleet import Fleet, RoverStatus
from rl_cluster.streams.intake import Intake, IntakeSettings, IntakeStatus
from rl_cluster.streams.nats_source import NatsSource
from rl_cluster.streams.source import StreamUnreachable
from rl_cluster.supervision.health import Health

_POLL_S = 0.5
_AGAIN_S = 1.0
_REPORT_S = 1.0
_VIEWS, _WAITING_VIEWS = 10, 256
"""Written in one report, since each takes 2 ms; and kept until then, of 64 KB each."""
_NO_POLICY = -1


@dataclass(frozen=True)
class ReaderStatus:
    """What a reader reports; counts are since it began."""

    intake: IntakeStatus
    newest_age_s: float | None
    """Since the newest message was published; None before the first."""
    rovers: tuple[RoverStatus, ...]
    notices: tuple[dict[str, str], ...] = ()


class ReaderActor:
    """Reader of one task."""

    def __init__(self, task: str, config: TaskConfig, run_dir: str, epoch: int) -> None:
        self._vitals = Vitals(epoch, "waiting")
        self._task, self._config, self._run_dir = task, config, Path(run_dir)
        self._dir = self._run_dir / task
        self._fleet = Fleet(config.stream.quota_steps_per_s, time.monotonic)
        self._shelf = PolicyShelf(self._dir / "policies", keep=1)  # only read here
        self._scores = FieldScores(self._dir)
        self._games: list[FinishedGame] = []
        self._notices: list[dict[str, str]] = []
        self._intake: Intake | None = None
        self._opening = asyncio.Lock()
        self._policy_versions: dict[int, int] = {}
        self._views: dict[str, np.ndarray] = {}
        self._silent_since_s: float | None = None
        self._expired = 0
        """Messages that were said to be lost."""

    @once_made
    def __repr__(self) -> str:
        """Name, state and speed."""
        read = 0 if self._intake is None else self._intake.status().messages
        speed = f"{self._vitals.per_s(read):.1f} messages/s"
        return self._vitals.line(names.reader_name(self._task), speed)

    async def health(self) -> Health:
        """Say how the work goes on."""
        return self._vitals.report()

    async def change(self, config: TaskConfig) -> None:
        """Take another time of silence; quotas and limits stay as they were."""
        self._config = config

    async def collect(self, num_blocks: int, task_env_steps: int, for_node: str) -> tuple[Any, ...]:
        """Return a `Collected` and then up to `num_blocks` blocks, each a value of its own.

        None stands for the blocks that did not come in time.
        """
        intake = await self._opened()
        self._vitals.progress()
        if intake is None:
            return Collected([], CollectReport((), None)), *[None] * num_blocks
        blocks = [self._known(block) for block in await intake.collect(num_blocks, _POLL_S)]
        missing = [None] * (num_blocks - len(blocks))
        games, self._games = tuple(self._games), []
        infos = [block.info() for block in blocks]
        return Collected(infos, CollectReport(games, None)), *blocks, *missing

    async def stored(self, messages: list[str]) -> None:
        """Hear that blocks are kept, so that their messages need not come again."""
        if self._intake is not None:
            await self._intake.stored(messages)

    async def status(self) -> ReaderStatus | None:
        """Where stream and rovers stand; None before the stream was reached."""
        if self._intake is None:
            return None
        status = self._intake.status()
        newest_s = status.newest_published_s
        age_s = None if newest_s is None else max(0.0, time.time() - newest_s)
        notices, self._notices = self._notices, []
        return ReaderStatus(status, age_s, tuple(self._fleet.status()), tuple(notices))

    async def _opened(self) -> Intake | None:
        """The intake; None while the server is away."""
        async with self._opening:
            if self._intake is None and (url := self._url()) is not None:
                stream = self._config.stream
                limits = DecodeLimits(stream.max_message_bytes)
                source = NatsSource(stream_settings(stream, url))
                intake = Intake(
                    source,
                    partial(decode_experience, limits=limits),
                    self._fleet,
                    IntakeSettings(self._config.rollout.block_length, stream.max_in_flight),
                )
                try:
                    await intake.open()
                except StreamUnreachable as error:
                    self._say("stream_unreachable", str(error), "tried again")
                else:
                    self._intake, self._source = intake, source
                    self._reporter = asyncio.create_task(self._report())
            if self._intake is None:
                await asyncio.sleep(_AGAIN_S)
            elif self._reporter.done():
                self._reporter.result()  # it ends by an error only, which replay passes on
            return self._intake

    def _url(self) -> str | None:
        return stream_url(self._run_dir, self._task, self._config)

    def _known(self, block: Block) -> Block:
        """A block with the learner's version of its policy, where the rover's is known."""
        rover = block.source.partition(":")[2]
        if rover in self._views or len(self._views) < _WAITING_VIEWS:
            # A copy, or one row would keep the whole block in memory.
            self._views[rover] = block.observations[-1].copy()
        wire = int(block.policy_versions[0])
        version = self._policy_versions.get(wire, _NO_POLICY)
        return replace(block, policy_versions=np.full_like(block.policy_versions, version))

    async def _report(self) -> None:
        """Write what people and the courier read, once a second."""
        while True:
            self._take_episodes(self._fleet.take_finished())
            self._look_for_silence()
            self._look_for_losses()
            self._notices += [
                notice(said.kind, said.cause, said.action) for said in self._source.take_notices()
            ]
            await asyncio.to_thread(self._write)
            await asyncio.sleep(_REPORT_S)

    def _take_episodes(self, episodes: list[FinishedEpisode]) -> None:
        self._scores.add(episodes)
        self._games += [
            FinishedGame(each.total_reward, each.steps) for each in episodes if not each.is_eval
        ]

    def _write(self) -> None:
        records = self._shelf.records()
        self._policy_versions = {record.version: record.policy_version for record in records}
        assert self._intake is not None
        status = self._intake.status()
        try:
            shown = vars(status) | {"source": vars(status.source)}
            write_status(self._dir, self._fleet.status(), shown, self._scores)
            for rover in list(self._views)[:_VIEWS]:  # those that wait longest
                save_view(self._dir, rover, self._views.pop(rover))
        except OSError as error:
            self._say("field_unwritten", str(error), "tried again")

    def _look_for_silence(self) -> None:
        """Say once that nothing comes, for how long and why; and that it does again."""
        assert self._intake is not None
        source = self._intake.status().source
        if source.silent_s >= self._config.stream.silence_s:
            if self._silent_since_s is None:
                self._silent_since_s = time.monotonic() - source.silent_s
                cause = source.trouble or "no rover publishes"
                self._say(
                    "stream_silent",
                    f"no message for {source.silent_s:.0f} s: {cause}",
                    "the learner waits when it has learned enough from what is there",
                )
        elif self._silent_since_s is not None:
            lasted_s = time.monotonic() - self._silent_since_s
            self._silent_since_s = None
            self._say("stream_again", f"messages come after {lasted_s:.0f} s", "training goes on")

    def _look_for_losses(self) -> None:
        assert self._intake is not None
        expired = self._intake.status().source.expired
        if expired > self._expired:
            cause = (
                f"the stream's limits removed {expired - self._expired} messages before their turn"
            )
            self._say("stream_expired", cause, "training goes on; raise the stream's limits")
            self._expired = expired

    def _say(self, kind: str, cause: str, action: str) -> None:
        self._notices.append(notice(kind, cause, action))
