"""The format of a checkpoint directory: what is written, and what is refused at reading.

Invariant: `manifest.json` holds the sha256 sum and size of every other file and a sum of itself, so
an altered, torn or missing byte anywhere is an error that names the file. Nothing is ever
unpickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

FORMAT = 1
MANIFEST = "manifest.json"
_ADVICE = "remove that checkpoint directory, or restore it from a copy; an older one can be used"


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
class FilePrint:
    """What one file has to be: the sha256 sum (hexadecimal) and the size of its content."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, content: bytes) -> FilePrint:
        """That of `content`."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    def to_json(self) -> dict[str, str | int]:
        """As a manifest holds it."""
        return {"sha256": self.sha256, "bytes": self.size_bytes}


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's manifest says.

    Attributes:
      step: learner updates, >= 0.
      epoch: of the writer (see `rl_cluster.fence`); 0 where it had none.
      schema: what the tensors mean; any JSON.
      files: every other file, by its plain name, in the order written.
    """

    step: int
    epoch: int
    schema: Mapping[str, Any]
    files: Mapping[str, FilePrint]


def encode(checkpoint: Checkpoint, epoch: int) -> dict[str, bytes]:
    """The files of a checkpoint, in the order to write them: the manifest last.

    Args:
      epoch: of the writer; 0 where none is known.

    Raises:
      CheckpointError: the step is negative, or state and schema are not JSON.
    """
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
        "epoch": epoch,
        "schema": dict(checkpoint.schema),
        "files": {name: FilePrint.of(content).to_json() for name, content in files.items()},
    }
    # Through JSON first, as it will be read back: the sum has to cover what a reader sees.
    return files | {MANIFEST: _seal(json.loads(_to_json(manifest)))}


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


def _seal(manifest: dict[str, Any]) -> bytes:
    """The manifest with a sum of itself, so that an altered manifest is noticed too."""
    return _to_json(manifest | {"sha256": hashlib.sha256(_to_json(manifest)).hexdigest()})


def load(path: Path, expect_schema: Mapping[str, Any] | None) -> Checkpoint:
    """Verify and load the checkpoint directory `path`.

    Raises:
      CheckpointError: a file is missing or its bytes are not the ones that were saved.
      SchemaError: it is whole, but its schema is not `expect_schema`.
    """
    manifest = read_manifest(path)
    if expect_schema is not None:
        check_schema(path, manifest.schema, expect_schema)
    contents = {name: read_verified(path, name, manifest) for name in manifest.files}
    try:
        return Checkpoint(
            step=manifest.step,
            model=safetensors.torch.load(contents["model.safetensors"]),
            optimizer=safetensors.torch.load(contents["optimizer.safetensors"]),
            state=json.loads(contents["state.json"]),
            schema=manifest.schema,
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is whole, but no checkpoint: {error!r}") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint directory `path`; raises as `parse_manifest` does."""
    return parse_manifest(read_file(path / MANIFEST), path)


def parse_manifest(content: bytes, place: object) -> Manifest:
    """The manifest in `content`, which was read from the checkpoint `place`.

    Raises:
      CheckpointError: it is torn or altered, of another format, or names a file elsewhere.
    """
    try:
        manifest = json.loads(content)
        unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = _seal(unsealed) == content
    except (ValueError, AttributeError, CheckpointError):
        whole = False
    if not whole:
        raise CheckpointError(f"{place}/{MANIFEST} is torn or altered: {_ADVICE}")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {place} has format {manifest.get('format')!r}, this program reads "
            f"{FORMAT}: load it with the version of rl-cluster that wrote it"
        )
    return _checked_manifest(manifest, place)


def _checked_manifest(manifest: Mapping[str, Any], place: object) -> Manifest:
    try:
        checked = Manifest(
            step=int(manifest["step"]),
            epoch=int(manifest.get("epoch", 0)),  # none was written before writers had epochs
            schema=dict(manifest["schema"]),
            files={
                str(name): FilePrint(str(file["sha256"]), int(file["bytes"]))
                for name, file in manifest["files"].items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} is whole, but no checkpoint: {error!r}") from error
    for name in checked.files:
        if name != os.path.basename(name) or name in ("", ".", "..", MANIFEST):
            raise CheckpointError(f"{place}/{MANIFEST} names {name!r}, not a file beside it")
    return checked


def read_file(path: Path) -> bytes:
    """The bytes of a checkpoint's file, unchecked; CheckpointError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {_ADVICE}") from error


def read_verified(path: Path, name: str, manifest: Manifest) -> bytes:
    """The bytes of file `name` of `path`; CheckpointError unless they are those of the manifest."""
    content = read_file(path / name)
    check_content(content, manifest.files[name], path / name)
    return content


def check_content(content: bytes, saved: FilePrint, place: object) -> None:
    """Raise CheckpointError, naming `place`, unless `content` is what was saved."""
    if FilePrint.of(content) != saved:
        raise CheckpointError(
            f"{place} is torn or altered ({len(content):,} bytes, {saved.size_bytes:,} "
            f"were saved; the sha256 sums differ): {_ADVICE}"
        )


def check_files(files: Mapping[str, bytes], place: object) -> Manifest:
    """The manifest among `files`; CheckpointError unless the others are what it names."""
    manifest = parse_manifest(files.get(MANIFEST, b""), place)
    for name, saved in manifest.files.items():
        check_content(files.get(name, b""), saved, f"{place}/{name}")
    return manifest


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
