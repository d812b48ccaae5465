"""Checkpoints: directories that are whole or refused, and never changed once they have their name.

Invariant: a directory `STEP/` (or `STEP-1/`, when step STEP was saved again) got its name after
every byte in it was on disk, and is never written to again. `manifest.json`, written last, holds
the sha256 sum and size of every other file and a sum of itself, so whatever a crash, a full disk or
a failing drive does later is noticed at load. Nothing is ever unpickled: tensors are safetensors,
the rest is JSON.

    STEP/model.safetensors  STEP/optimizer.safetensors  STEP/state.json  STEP/manifest.json
    latest  best  candidate   text files naming a directory; `candidate` is being evaluated
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

FORMAT = 1
_MANIFEST = "manifest.json"
_ADVICE = "remove that checkpoint directory, or restore it from a copy; an older one can be used"
_NAME = re.compile(r"(?P<step>\d{12,})(?:-(?P<revision>[1-9]\d*))?")


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, or is not fit to be loaded."""


class SchemaError(CheckpointError):
    """A whole checkpoint of another environment or network than the one expected."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds; the caller flattens its objects into it.

    Attributes:
      step: learner updates so far, >= 0.
      model: tensors by name, of any dtype and device; loaded on the CPU.
      optimizer: tensors by name (moments, random states as uint8, ...).
      state: what JSON carries unchanged (counters, exploration, best-so-far, tracker id). Tuples,
        integer keys and NaN are refused at save: they would come back as something else.
      schema: what the tensors mean (observation shape and dtype, actions, network), compared at
        load; any JSON.
    """

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    schema: Mapping[str, Any] = field(default_factory=dict)


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

    def __init__(self, directory: str | Path, keep: int) -> None:
        """Keep the last `keep` (>= 1) checkpoints and the best; `directory` need not exist yet."""
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint has to be kept")
        self.directory = Path(directory)
        self._keep = keep
        self._refused: set[str] = set()

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Write `checkpoint`, point `latest` (and `best`) at it, then remove what is too old.

        A crash at any point leaves every earlier checkpoint whole, one of the same step included.

        Raises:
          CheckpointError: the content is not JSON, or the disk is full or refuses; the earlier
            checkpoints are untouched and nothing is left behind.
        """
        files = _encode(checkpoint)
        with _reporting(self.directory, sum(map(len, files.values()))):
            self._prepare()
            path = self._write(checkpoint.step, files)
            self._point("latest", path.name)
            if best:
                self._point("best", path.name)
            self._prune(checkpoint.step)
        return path

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
        with _reporting(self.directory, 0):
            self._point(pointer, names[-1])
        return self.directory / names[-1]

    @staticmethod
    def load(path: str | Path, expect_schema: Mapping[str, Any] | None = None) -> Checkpoint:
        """Verify and load the checkpoint directory `path`.

        Raises:
          CheckpointError: a file is missing or its bytes are not the ones that were saved.
          SchemaError: it is whole, but its schema is not `expect_schema`.
        """
        return _load(Path(path), expect_schema)

    def load_latest(self, expect_schema: Mapping[str, Any] | None = None) -> Loaded | None:
        """The newest checkpoint that is whole, by step; None if none was ever saved.

        The pointer `latest` is for people: what it names may be torn, or it may be missing.

        Raises:
          CheckpointError: there are checkpoints, and every one is refused.
          SchemaError: as in `load`; older ones would not fit either.
        """
        refused: list[CheckpointError] = []
        for name in reversed(self._names()):
            try:
                checkpoint = _load(self.directory / name, expect_schema)
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
        return None if name is None else _load(self.directory / name, expect_schema)

    def _names(self) -> list[str]:
        """The checkpoint directories, oldest first: by step, then by revision."""
        if not self.directory.is_dir():
            return []
        return sorted(filter(_NAME.fullmatch, os.listdir(self.directory)), key=_order)

    def _write(self, step: int, files: dict[str, bytes]) -> Path:
        taken = [_order(name)[1] for name in self._names() if _order(name)[0] == step]
        name = f"{step:012d}" + (f"-{max(taken) + 1}" if taken else "")
        temporary = self.directory / f"{name}.tmp-{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            for file, content in files.items():
                _write_synced(temporary / file, content)
            _sync(temporary)
            temporary.rename(self.directory / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(self.directory)
        return self.directory / name

    def _point(self, pointer: str, name: str) -> None:
        temporary = self.directory / f"{pointer}.tmp-{secrets.token_hex(4)}"
        try:
            _write_synced(temporary, f"{name}\n".encode())
            temporary.replace(self.directory / pointer)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.directory)

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

    def _prune(self, saved_step: int) -> None:
        """Remove what is older than the last `keep`, and older revisions of a step.

        Steps above `saved_step` are of a future that was refused or left; they go when training has
        passed them. A refused checkpoint counts for nothing, or it would push out a whole one.
        """
        names = [name for name in self._names() if _order(name)[0] <= saved_step]
        newest = {_order(name)[0]: name for name in names if name not in self._refused}
        oldest_kept = sorted(newest)[-self._keep :][0]
        marked = {self._pointed("best"), self._pointed("candidate")}
        for name in names:
            step = _order(name)[0]
            outdated = step < oldest_kept or newest.get(step, name) != name
            if outdated and name not in marked:
                # Renamed first: a removal that is cut short must not leave a torn checkpoint.
                doomed = self.directory / f"{name}.tmp-{secrets.token_hex(4)}"
                shutil.rmtree((self.directory / name).rename(doomed))

    def _prepare(self) -> None:
        """Create the directory, or remove what an interrupted save left in it."""
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True)
            _sync(self.directory.parent)
        for path in self.directory.glob("*.tmp-*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match["step"]), int(match["revision"] or 0)


@contextmanager
def _reporting(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turn an operating system error while saving into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot save a checkpoint of {needed_bytes:,} bytes in {directory}: {error}. "
            "Earlier checkpoints are untouched; free space there, or keep fewer, and save again"
        ) from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make the names in `directory` durable; a rename alone survives no power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint, in the order to write them: the manifest last."""
    if checkpoint.step < 0:
        raise CheckpointError(f"step is {checkpoint.step}: it counts updates, from 0")
    files = {
        "model.safetensors": _tensors_to_bytes(checkpoint.model),
        "optimizer.safetensors": _tensors_to_bytes(checkpoint.optimizer),
        "state.json": _state_to_bytes(dict(checkpoint.state)),
    }
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "schema": dict(checkpoint.schema),
        "files": {name: _fingerprint(content) for name, content in files.items()},
    }
    # Through JSON first, as it will be read back: the sum has to cover what a reader sees.
    return files | {_MANIFEST: _seal(json.loads(_to_json(manifest)))}


def _tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Copied, because safetensors refuses tensors that share memory, as views of a flat vector do.
    return safetensors.torch.save(
        {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )


def _to_json(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, allow_nan=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state and schema of a checkpoint must be JSON: {error}") from error


def _state_to_bytes(state: dict[str, Any]) -> bytes:
    encoded = _to_json(state)
    decoded = json.loads(encoded)
    changed = [key for key, value in state.items() if decoded.get(key) != value]
    if changed:
        raise CheckpointError(
            f"JSON would change the state of a checkpoint in {changed}: "
            "use lists for tuples and strings for keys"
        )
    return encoded


def _fingerprint(content: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _seal(manifest: dict[str, Any]) -> bytes:
    """The manifest with a sum of itself, so that an altered manifest is noticed too."""
    return _to_json(manifest | {"sha256": hashlib.sha256(_to_json(manifest)).hexdigest()})


def _load(path: Path, expect_schema: Mapping[str, Any] | None) -> Checkpoint:
    manifest = _read_manifest(path)
    try:
        if expect_schema is not None:
            check_schema(path, manifest["schema"], expect_schema)
        contents = {name: _read_verified(path, name, manifest) for name in manifest["files"]}
        return Checkpoint(
            step=manifest["step"],
            model=safetensors.torch.load(contents["model.safetensors"]),
            optimizer=safetensors.torch.load(contents["optimizer.safetensors"]),
            state=json.loads(contents["state.json"]),
            schema=manifest["schema"],
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is whole, but no checkpoint: {error!r}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    content = _read(path / _MANIFEST)
    try:
        manifest = json.loads(content)
        unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = _seal(unsealed) == content
    except (ValueError, AttributeError, CheckpointError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path / _MANIFEST} is torn or altered: {_ADVICE}")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {manifest.get('format')!r}, this program reads "
            f"{FORMAT}: load it with the version of rl-cluster that wrote it"
        )
    return unsealed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {_ADVICE}") from error


def _read_verified(path: Path, name: str, manifest: dict[str, Any]) -> bytes:
    if name != os.path.basename(name):
        raise CheckpointError(f"{path / _MANIFEST} names {name!r}, which is not a file beside it")
    content = _read(path / name)
    wanted = manifest["files"][name]
    if _fingerprint(content) != wanted:
        raise CheckpointError(
            f"{path / name} is torn or altered ({len(content):,} bytes, {wanted['bytes']:,} "
            f"were saved; the sha256 sums differ): {_ADVICE}"
        )
    return content


def check_schema(place: object, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise SchemaError, naming both values of every difference, unless two schemas agree."""
    expected = json.loads(_to_json(dict(expected)))  # (84, 84) and [84, 84] are the same shape
    differences = [
        f"{key} is {found.get(key)!r}, expected {expected.get(key)!r}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    if differences:
        raise SchemaError(
            f"{place} has another schema: {'; '.join(differences)}. Resume it with the "
            "configuration it was trained with, or start a new run directory"
        )
