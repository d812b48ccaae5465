"""Checkpoints: directories that are whole or refused, and never changed once they have their name.

Invariant: a directory `STEP/` (or `STEP-1/`, when step STEP was saved again) got its name after
every byte in it was on disk, and is never written to again; so whatever a crash, a full disk or a
failing drive does later is noticed at load. A writer whose epoch is over (`rl_cluster.fence`)
changes nothing in the directory.

    STEP/model.safetensors  STEP/optimizer.safetensors  STEP/state.json  STEP/manifest.json
    latest  best  candidate   text files naming a directory; `candidate` is being evaluated

The newest is the one of the highest epoch, and of that the one of the highest step: a later life
that went on from an older checkpoint is ahead of what it left.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_cluster.checkpoint_format import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    SchemaError,
    check_files,
    check_schema,
    encode,
    load,
    read_manifest,
)
from rl_cluster.disk import sync_directory
from rl_cluster.fence import Fence

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "Loaded",
    "SchemaError",
    "check_schema",
]

_NAME = re.compile(r"(?P<step>\d{12,})(?:-(?P<revision>[1-9]\d*))?")


@dataclass(frozen=True)
class Loaded:
    """The newest whole checkpoint, where it lay, and why each newer one was refused."""

    checkpoint: Checkpoint
    path: Path
    refused: tuple[CheckpointError, ...]


class CheckpointStore:
    """The checkpoints of one task, in `directory`: one writer, any number of readers.

    Reading changes nothing on disk, so another process may read while the learner saves.
    """

    def __init__(self, directory: str | Path, keep: int, fence: Fence | None = None) -> None:
        """Keep the last `keep` (>= 1) checkpoints and the best; `directory` need not exist yet.

        With a `fence`, every change is committed under its epoch, or raises its StaleEpoch.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint has to be kept")
        self.directory = Path(directory)
        self._keep = keep
        self._fence = fence
        self._epoch = 0 if fence is None else fence.epoch
        self._refused: set[str] = set()

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Write `checkpoint`, point `latest` (and `best`) at it, then remove what is too old.

        A crash at any point leaves every earlier checkpoint whole, one of the same step included.

        Raises:
          CheckpointError: the content is not JSON, or the disk is full or refuses; the earlier
            checkpoints are untouched and nothing is left behind.
          StaleEpoch: another writer took this one's place; likewise.
        """
        files = encode(checkpoint, self._epoch)
        pointers = ["latest", "best"] if best else ["latest"]
        with self._reporting(sum(map(len, files.values()))):
            with self._hold():
                self._prepare()
            name = self._free_name(checkpoint.step)
            with self._written(name, files, pointers) as (temporary, pointing), self._hold():
                self._commit(name, temporary, pointing)
                self._prune(name)
        return self.directory / name

    def adopt(self, files: Mapping[str, bytes]) -> Path:
        """Take in the files of a checkpoint from elsewhere as they are, its manifest among them.

        It keeps its epoch; what is saved after a `load_latest` is ahead of it all the same.

        Raises:
          CheckpointError: the files are not those of its manifest; or as `save` does.
          StaleEpoch: another writer took this one's place.
        """
        manifest = check_files(files, "the checkpoint to take in")
        files = {name: files[name] for name in (*manifest.files, MANIFEST)}
        with self._reporting(sum(map(len, files.values()))):
            with self._hold():
                self._prepare()
            name = self._free_name(manifest.step)
            with self._written(name, files, ["latest"]) as (temporary, pointing), self._hold():
                self._commit(name, temporary, pointing)
        return self.directory / name

    def mark_best(self, step: int) -> Path:
        """Point `best` at the checkpoint of `step`, which is then kept until another is better."""
        return self._mark("best", step)

    def mark_candidate(self, step: int) -> Path:
        """Keep the checkpoint of `step` until another is the candidate."""
        return self._mark("candidate", step)

    def _mark(self, pointer: str, step: int) -> Path:
        names = [name for name in self._names() if _order(name)[0] == step]
        if not names:
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}, only {self._names()}"
            )
        with self._reporting(0), self._hold(), self._written(names[-1], {}, [pointer]) as written:
            self._point(written[1])
        return self.directory / names[-1]

    @staticmethod
    def load(path: str | Path, expect_schema: Mapping[str, Any] | None = None) -> Checkpoint:
        """Verify and load the checkpoint directory `path`.

        Raises:
          CheckpointError: a file is missing or its bytes are not the ones that were saved.
          SchemaError: it is whole, but its schema is not `expect_schema`.
        """
        return load(Path(path), expect_schema)

    def load_latest(self, expect_schema: Mapping[str, Any] | None = None) -> Loaded | None:
        """The newest checkpoint that is whole, by epoch and step; None if none was ever saved.

        The pointer `latest` is for people: what it names may be torn, or it may be missing.

        Raises:
          CheckpointError: there are checkpoints, and every one is refused.
          SchemaError: as in `load`; older ones would not fit either.
        """
        refused: list[CheckpointError] = []
        names = self._names()
        # Checkpoints copied here from another run may be of later epochs than ours: what is saved
        # from now on has to be ahead of them too.
        self._epoch = max([self._epoch, *(self._epoch_of(name) or 0 for name in names)])
        for name in reversed(names):
            try:
                checkpoint = load(self.directory / name, expect_schema)
            except SchemaError:
                raise
            except CheckpointError as error:
                refused.append(error)
                self._refused.add(name)
            else:
                return Loaded(checkpoint, self.directory / name, tuple(refused))
        if refused:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is refused; to start anew, move it away. "
                + " | ".join(map(str, refused))
            )
        return None

    def load_best(self, expect_schema: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """The checkpoint that `best` names; None if none was marked. Raises as `load` does."""
        name = self._pointed("best")
        return None if name is None else load(self.directory / name, expect_schema)

    def _hold(self) -> AbstractContextManager[None]:
        return nullcontext() if self._fence is None else self._fence.hold()

    def _names(self) -> list[str]:
        """The checkpoint directories, oldest first: by epoch, then step, then revision.

        One whose manifest is damaged counts to the newest epoch: it is to be refused, loudly, where
        it may be the newest, and to go when training has passed its step.
        """
        if not self.directory.is_dir():
            return []
        names = list(filter(_NAME.fullmatch, os.listdir(self.directory)))
        known = {name: self._epoch_of(name) for name in names}
        newest = max((epoch for epoch in known.values() if epoch is not None), default=0)
        epochs = {name: newest if epoch is None else epoch for name, epoch in known.items()}
        return sorted(names, key=lambda name: (epochs[name], *_order(name)))

    def _epoch_of(self, name: str) -> int | None:
        try:
            return read_manifest(self.directory / name).epoch
        except CheckpointError:
            return None

    def _free_name(self, step: int) -> str:
        taken = [_order(name)[1] for name in self._names() if _order(name)[0] == step]
        return f"{step:012d}" + (f"-{max(taken) + 1}" if taken else "")

    @contextmanager
    def _written(
        self, name: str, files: Mapping[str, bytes], pointers: list[str]
    ) -> Iterator[tuple[Path, dict[str, Path]]]:
        """Everything that needs space, on disk under names that go again at the end.

        Yields the directory to be renamed to `name`, and each pointer's file to take its place.
        """
        token = secrets.token_hex(4)
        temporary = self.directory / f"{name}.tmp-{token}"
        pointing = {pointer: self.directory / f"{pointer}.tmp-{token}" for pointer in pointers}
        try:
            if files:
                temporary.mkdir()
                for file, content in files.items():
                    _write_synced(temporary / file, content)
                sync_directory(temporary)
            for path in pointing.values():
                _write_synced(path, f"{name}\n".encode())
            yield temporary, pointing
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            for path in pointing.values():
                path.unlink(missing_ok=True)

    def _commit(self, name: str, temporary: Path, pointing: Mapping[str, Path]) -> None:
        temporary.rename(self.directory / name)
        self._refused.discard(name)
        sync_directory(self.directory)
        self._point(pointing)

    def _point(self, pointing: Mapping[str, Path]) -> None:
        for pointer, written in pointing.items():
            written.replace(self.directory / pointer)
        sync_directory(self.directory)

    def _pointed(self, pointer: str) -> str | None:
        try:
            name = (self.directory / pointer).read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.directory / pointer} cannot be read: {error}") from error
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{self.directory / pointer} holds {name!r}, which names no checkpoint; "
                f"write one of {self._names()} into it, or remove it"
            )
        return name

    def _prune(self, saved: str) -> None:
        """Remove what is older than the last `keep`, and older revisions of a step.

        What stands after `saved` is of a future that was refused or left; it goes when training has
        passed it. A refused checkpoint counts for nothing, or it would push out a whole one.
        """
        names = self._names()
        names = names[: names.index(saved) + 1]
        newest = {_order(name)[0]: name for name in names if name not in self._refused}
        kept = [name for name in names if name in newest.values()][-self._keep :]
        oldest_kept = names.index(kept[0])
        marked = {self._pointed("best"), self._pointed("candidate")}
        for position, name in enumerate(names):
            outdated = position < oldest_kept or newest.get(_order(name)[0], name) != name
            if outdated and name not in marked:
                # Renamed first: a removal that is cut short must not leave a torn checkpoint.
                doomed = self.directory / f"{name}.tmp-{secrets.token_hex(4)}"
                shutil.rmtree((self.directory / name).rename(doomed))

    def _prepare(self) -> None:
        """Create the directory, or remove what an interrupted save left in it."""
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True)
            sync_directory(self.directory.parent)
        for path in self.directory.glob("*.tmp-*"):
            if path.is_dir():
                # One that a frozen writer still adds to may resist; the next save tries again.
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def _reporting(self, needed_bytes: int) -> Iterator[None]:
        """Turn an operating system error while saving into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot save a checkpoint of {needed_bytes:,} bytes in {self.directory}: {error}. "
                "Earlier checkpoints are untouched; free space there, or keep fewer, and save again"
            ) from error


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match["step"]), int(match["revision"] or 0)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
