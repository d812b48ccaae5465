"""The uploader: a thread that copies a task's newest and best checkpoints to a remote place.

Invariant: what is reported without an error was read back whole from the remote. Training never
waits for an upload: an offer is one assignment, and while the remote is slow or away, the newest
offer takes the place of those before it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rl_cluster.checkpoint_format import CheckpointError
from rl_cluster.remote import RemoteCheckpoints, RemoteError

_REPORTS = 1000


@dataclass(frozen=True)
class UploadReport:
    """How one upload went.

    Attributes:
      step: of the checkpoint.
      url: of the task at the remote, without user, password and query.
      size_bytes: written for it; 0 where it failed, or was there already.
      duration_s: from the first attempt on, waits included.
      attempts: made, >= 1; 0 where none was begun.
      error: why it failed, or why what is too old could not be removed after it; None: all is well.
    """

    step: int
    url: str
    size_bytes: int
    duration_s: float
    attempts: int
    error: str | None


@dataclass(frozen=True)
class Backoff:
    """How long to wait after a failed attempt: each time about twice as long.

    Attributes:
      first_s: after the first one, before jitter.
      longest_s: at most, before jitter.
      attempts: for one checkpoint, >= 1; then it is reported as failed.
    """

    first_s: float = 1.0
    longest_s: float = 60.0
    attempts: int = 6

    def delay_s(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """Seconds to wait after `failures` (>= 1) in a row, by half to all of the full time.

        The jitter keeps many tasks from asking a remote that comes back all at once.
        """
        full_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return uniform(0.5, 1.0) * full_s


@dataclass(frozen=True)
class _Job:
    path: Path
    pointers: tuple[str, ...]

    @property
    def step(self) -> int:
        return _step_of(self.path)


class Uploader:
    """Copies of one task's checkpoints below URL/RUN/TASK; see `rl_cluster.remote`."""

    def __init__(
        self, url: str, run: str, task: str, keep: int, backoff: Backoff | None = None
    ) -> None:
        """Start the thread; the remote keeps the newest `keep` (>= 1) checkpoints and the best.

        Raises:
          RemoteError: an unknown protocol, or its package is not installed.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 uploaded checkpoint has to be kept")
        self._remote = RemoteCheckpoints(url, run, task)
        self._keep, self._backoff = keep, backoff or Backoff()
        self._random = random.Random()
        self._changed = threading.Condition()
        self._offered: dict[str, Path] = {}
        self._current: _Job | None = None
        self._reports: list[UploadReport] = []
        self._closing, self._given_up = False, threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"upload-{task}", daemon=True)
        self._thread.start()

    def offer(self, path: Path) -> None:
        """Copy the checkpoint directory `path` next, and let `latest` name it."""
        self._offer("latest", path)

    def offer_best(self, path: Path) -> None:
        """Copy it, unless it is there, and let `best` name it; it is then kept there."""
        self._offer("best", path)

    def take_reports(self) -> list[UploadReport]:
        """What ended since the last call, oldest first; the last 1,000 at most."""
        with self._changed:
            reports, self._reports = self._reports, []
        return reports

    def close(self, timeout_s: float) -> bool:
        """Let what was offered finish; whether it did. The rest is reported as an error."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self._given_up.set()
        with self._changed:
            unfinished = {path: _Job(path, ()) for path in self._offered.values()}
            if self._current is not None:
                unfinished[self._current.path] = self._current
            self._offered.clear()
        for job in unfinished.values():
            self._report(job, timeout_s, 0, f"not finished {timeout_s:g} s after the end of work")
        return False

    def _offer(self, pointer: str, path: Path) -> None:
        _step_of(path)
        with self._changed:
            if self._closing:
                raise RuntimeError(f"{path} was offered to an uploader that is closed")
            self._offered[pointer] = path
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            start_s = time.monotonic()
            try:
                self._upload(job, start_s)
            except Exception as error:  # noqa: BLE001 - thread boundary: reported
                self._report(job, time.monotonic() - start_s, 1, repr(error))

    def _next(self) -> _Job | None:
        """What to upload now, the best first, since it comes seldom; None at the end."""
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._offered or self._closing)
            if not self._offered:
                return None
            path = self._offered.get("best") or self._offered["latest"]
            pointers = tuple(name for name, offered in self._offered.items() if offered == path)
            for pointer in pointers:
                del self._offered[pointer]
            self._current = _Job(path, pointers)
            return self._current

    def _upload(self, job: _Job, start_s: float) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                size_bytes, name = self._copy(job)
            except CheckpointError as error:
                gone = f"given up, the checkpoint here is gone or damaged: {error}"
                return self._report(job, time.monotonic() - start_s, attempts, gone)
            except RemoteError as error:
                self._failures += 1
                if self._ends_after_wait(job, attempts):
                    return self._report(job, time.monotonic() - start_s, attempts, str(error))
            else:
                self._failures = 0
                duration_s = time.monotonic() - start_s
                error_text = self._prune(name)
                return self._report(job, duration_s, attempts, error_text, size_bytes)

    def _copy(self, job: _Job) -> tuple[int, str]:
        copied = self._remote.put(job.path)
        for pointer in job.pointers:
            self._remote.point(pointer, copied.name)
        return copied.size_bytes, copied.name

    def _prune(self, uploaded: str) -> str | None:
        try:
            self._remote.prune(self._keep, uploaded)
        except (RemoteError, CheckpointError) as error:
            return f"uploaded, but what is too old was not removed: {error}"
        return None

    def _ends_after_wait(self, job: _Job, attempts: int) -> bool:
        """Wait for the next attempt; whether there is none, or a newer checkpoint takes over."""
        # Counted over checkpoints, so that a remote that is away is not asked more often when a
        # newer one is offered.
        if self._given_up.wait(self._backoff.delay_s(self._failures, self._random.uniform)):
            return True
        with self._changed:
            superseded = all(pointer in self._offered for pointer in job.pointers)
        return superseded or attempts >= self._backoff.attempts

    def _report(
        self, job: _Job, duration_s: float, attempts: int, error: str | None, size_bytes: int = 0
    ) -> None:
        report = UploadReport(job.step, self._remote.url, size_bytes, duration_s, attempts, error)
        with self._changed:
            self._reports = [*self._reports, report][-_REPORTS:]


def _step_of(path: Path) -> int:
    step = path.name.partition("-")[0]
    if not step.isdigit():
        raise ValueError(
            f"{path} is not named as a checkpoint is, by its step: offer what was saved"
        )
    return int(step)
