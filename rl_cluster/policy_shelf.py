"""Every policy that went to the rovers, on disk: immutable versions that only grow.

Invariant: a version's record, which holds the sum of its file, is written after the file is on
disk, and neither is ever written again. So the newest record names the policy that the rovers have,
or get next; and to go back is to add an old file under a new version, as a new one is added.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from rl_cluster.disk import replacing, sync_directory
from rl_cluster.fence import Fence


class PolicyShelfError(RuntimeError):
    """A version that is not there, or not whole."""


@dataclass(frozen=True)
class PolicyRecord:
    """One version."""

    version: int
    """As rovers know it."""
    policy_version: int
    """As the learner published it."""
    learner_updates: int
    mean_return: float | None
    """Of its evaluation before it was sent; None: there was none."""
    episodes: int
    reason: str
    """Why it was sent: `new`, or what it goes back to."""
    time: float
    """Unix s."""
    sha256: str
    nbytes: int


class PolicyShelf:
    """The versions of one task.

    Args:
      directory: made where it is missing.
      keep: newest versions kept, beside the one of the best evaluation.
      fence: of the writer's place; its `StaleEpoch` says that another has it now.
    """

    def __init__(self, directory: Path, keep: int, fence: Fence | None = None) -> None:
        self._directory, self._keep, self._fence = directory, keep, fence
        directory.mkdir(parents=True, exist_ok=True)

    def records(self) -> list[PolicyRecord]:
        """Of all whole versions, oldest first."""
        found = [_read(path) for path in self._directory.glob("*.json")]
        return sorted((r for r in found if r is not None), key=lambda record: record.version)

    def newest(self) -> PolicyRecord | None:
        """The policy that the rovers have, or get next."""
        return next(reversed(self.records()), None)

    def add(
        self,
        onnx: bytes,
        *,
        version: int,
        policy_version: int,
        learner_updates: int,
        mean_return: float | None,
        episodes: int,
        reason: str,
        time_s: float,
    ) -> PolicyRecord:
        """Keep a policy for good.

        Raises:
          PolicyShelfError: the version is not above all others.
          OSError: the disk is full; nothing is left of it.
        """
        newest = self.newest()
        if newest is not None and version <= newest.version:
            raise PolicyShelfError(f"version {version} is not above {newest.version}")
        digest = hashlib.sha256(onnx).hexdigest()
        record = PolicyRecord(
            version, policy_version, learner_updates, mean_return, episodes, reason, time_s,
            digest, len(onnx),
        )  # fmt: skip
        text = json.dumps(asdict(record), allow_nan=False).encode()
        with self._hold():
            self._write(f"{version}.onnx", onnx)
            self._write(f"{version}.json", text)
        self._prune()
        return record

    def load(self, version: int) -> bytes:
        """The ONNX file of a version.

        Raises:
          PolicyShelfError: it is not here, or its bytes are not those that were kept.
        """
        known = {record.version: record for record in self.records()}
        if version not in known:
            versions = ", ".join(map(str, known)) or "none"
            raise PolicyShelfError(f"no policy of version {version} is kept; there are: {versions}")
        onnx = (self._directory / f"{version}.onnx").read_bytes()
        if hashlib.sha256(onnx).hexdigest() != known[version].sha256:
            raise PolicyShelfError(
                f"{self._directory}/{version}.onnx is not what was kept: take another version"
            )
        return onnx

    def _write(self, name: str, content: bytes) -> None:
        with replacing(self._directory / name) as file:
            file.write(content)
        sync_directory(self._directory)

    def _prune(self) -> None:
        records = self.records()
        judged = [r for r in records if r.mean_return is not None]
        best = max(judged, key=lambda r: r.mean_return or 0.0, default=None)
        for record in records[: -self._keep]:
            if best is None or record.version != best.version:
                (self._directory / f"{record.version}.json").unlink(missing_ok=True)
                (self._directory / f"{record.version}.onnx").unlink(missing_ok=True)

    def _hold(self) -> AbstractContextManager[None]:
        return nullcontext() if self._fence is None else self._fence.hold()


def _read(path: Path) -> PolicyRecord | None:
    """The record in a file; None where it is torn, so that its version never was."""
    try:
        return PolicyRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
