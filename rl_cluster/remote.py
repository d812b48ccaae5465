"""Checkpoints at an fsspec URL: copied whole, verified by reading back, never written over.

Invariant: a directory counts as a checkpoint once its `manifest.json`, written last, is whole;
object stores have no rename. A directory's name holds a sum of that manifest, and so of every byte
in it: two writers, a frozen one among them, never write different bytes to one place.

    URL/RUN/TASK/STEP-EPOCH-SUM/   the files of rl_cluster.checkpoint_format
    URL/RUN/TASK/latest  best      text files naming a directory
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec  # type: ignore[import-untyped]

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.checkpoint_format import (
    MANIFEST,
    CheckpointError,
    Manifest,
    check_files,
    parse_manifest,
    read_file,
    read_verified,
)

_NAME = re.compile(r"(?P<step>\d{12,})-(?P<epoch>\d+)-(?P<sum>[0-9a-f]{12})")
_USER = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\"]*")


class RemoteError(RuntimeError):
    """A remote place cannot be used, or what was written there is not what it gives back."""


def check_url(url: str) -> None:
    """Raise RemoteError unless a URL can be used, and holds no secret to be written down."""
    parts = urlsplit(url)
    if parts.password or parts.query:
        raise RemoteError(
            f"{_cleaner(url)(url)} holds a password or a query: configurations are kept in run "
            "directories. Give credentials as the service's own environment variables or files"
        )
    RemoteCheckpoints(url)


class RemoteMissing(RemoteError):
    """There is nothing at that place."""


@dataclass(frozen=True)
class Copied:
    """A checkpoint that is whole at the remote: its name there, and the bytes written for it."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Downloaded:
    """A checkpoint brought here, where it lies, and why each one tried before was refused."""

    path: Path
    refused: tuple[str, ...]


def download(url: str, store: CheckpointStore, best: bool = False) -> Downloaded:
    """Bring the newest whole checkpoint of a task, or its best, into a local store.

    Args:
      url: URL/RUN/TASK, as uploaded.
      store: whose directory it goes to; `load_latest` and `load` then verify it again.

    Raises:
      RemoteError: it cannot be reached, holds no checkpoint, or only damaged ones.
      CheckpointError: it could not be written here, or `best` there names nothing.
    """
    remote = RemoteCheckpoints(url)
    refused: list[str] = []
    for name in remote.best() if best else reversed(remote.whole()):
        try:
            files = remote.fetch(name)
        except (RemoteError, CheckpointError) as error:
            refused.append(str(error))
        else:
            return Downloaded(store.adopt(files), tuple(refused))
    wanted = "best checkpoint" if best else "checkpoint"
    raise RemoteError(
        f"{remote.url} holds no whole {wanted} (name URL/RUN/TASK). " + " | ".join(refused)
    )


class RemoteCheckpoints:
    """The uploaded checkpoints of one task. Errors and `url` show neither user, password nor query.

    Any method raises RemoteError when the remote refuses or cannot be reached.
    """

    def __init__(self, url: str, *below: str) -> None:
        """Raises RemoteError for an unknown protocol, or one whose package is not installed."""
        self._clean = _cleaner(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or "the package it names"
            raise RemoteError(
                f"{self._clean(url)} cannot be used: {self._clean(str(error))}. "
                f"Run `pip install {package}`, or name another URL"
            ) from None
        except Exception as error:  # noqa: BLE001 - each backend raises its own; told, not hidden
            raise RemoteError(
                f"{self._clean(url)} cannot be used: {self._clean(str(error))}. Name a URL whose "
                "protocol fsspec knows, such as s3://BUCKET/DIRECTORY or file:///DIRECTORY"
            ) from None
        self._root = "/".join([root.rstrip("/"), *below])
        self.url = "/".join([self._clean(url).rstrip("/"), *below])

    def put(self, source: Path) -> Copied:
        """Copy the checkpoint directory `source`; nothing is written where it is there already.

        Raises:
          CheckpointError: `source` is gone or damaged; trying again is of no use.
        """
        seal = read_file(source / MANIFEST)
        manifest = parse_manifest(seal, source)
        name = f"{manifest.step:012d}-{manifest.epoch}-{_short_sum(seal)}"
        if self._is_whole(name, seal):
            return Copied(name, 0)
        self._ask("makedirs", f"{self._root}/{name}", exist_ok=True)
        for file, content in _contents(source, manifest):
            self._write(f"{name}/{file}", content)
        self._write(f"{name}/{MANIFEST}", seal)
        sizes = [file.size_bytes for file in manifest.files.values()]
        return Copied(name, sum(sizes) + len(seal))

    def point(self, pointer: str, name: str) -> None:
        """Let the text file `pointer` name a checkpoint."""
        self._write(pointer, f"{name}\n".encode())

    def best(self) -> list[str]:
        """What `best` names: one checkpoint, or none; CheckpointError where it names nothing."""
        return self._pointed("best")

    def whole(self) -> list[str]:
        """The checkpoints whose manifest is there, oldest first: by epoch, then by step.

        Of two of one step, the one that `latest` names is the newer.
        """
        latest = self._latest()
        names = [name for name in self._names() if MANIFEST in self._listed(name)]
        return sorted(names, key=lambda name: (_order(name), name in latest))

    def prune(self, keep: int, uploaded: str) -> None:
        """Remove what is older than `uploaded`, but the last `keep` whole ones and those marked.

        A manifest goes first, so that what is half removed is not taken for whole.

        Raises:
          CheckpointError: `best` does not name the checkpoint that has to stay; nothing is removed.
        """
        names = self._names()
        whole = self.whole()
        kept = {*whole[-keep:], uploaded, *self._latest(), *self.best()}
        for name in names:
            if _order(name) < _order(uploaded) and name not in kept:
                if name in whole:
                    self._ask("rm_file", f"{self._root}/{name}/{MANIFEST}")
                self._ask("rm", f"{self._root}/{name}", recursive=True)

    def fetch(self, name: str) -> dict[str, bytes]:
        """The verified files of a checkpoint, the manifest among them.

        Raises:
          CheckpointError: it is torn or altered.
        """
        place = f"{self.url}/{name}"
        seal = self._read(f"{name}/{MANIFEST}")
        manifest = parse_manifest(seal, place)
        files = {file: self._read(f"{name}/{file}") for file in manifest.files}
        check_files(files | {MANIFEST: seal}, place)
        return files | {MANIFEST: seal}

    def _is_whole(self, name: str, seal: bytes) -> bool:
        """Whether a checkpoint is there; one that is damaged is no checkpoint from now on."""
        if MANIFEST not in self._listed(name):
            return False
        try:
            if self.fetch(name)[MANIFEST] == seal:
                return True
        except (CheckpointError, RemoteMissing):
            pass
        self._ask("rm_file", f"{self._root}/{name}/{MANIFEST}")
        return False

    def _latest(self) -> list[str]:
        """What `latest` names; one that was torn is written anew with the next upload."""
        try:
            return self._pointed("latest")
        except CheckpointError:
            return []

    def _pointed(self, pointer: str) -> list[str]:
        try:
            name = self._read(pointer).decode("ascii", "replace").strip()
        except RemoteMissing:
            return []
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{self.url}/{pointer} holds {name!r}, which names no checkpoint; write the name "
                "of one into it, or remove it"
            )
        return [name]

    def _names(self) -> list[str]:
        return sorted(filter(_NAME.fullmatch, self._listed("")), key=_order)

    def _listed(self, name: str) -> set[str]:
        """The names in a directory; none where there is no such directory."""
        # Backends keep listings, and answer "no" to `exists` when they only could not ask.
        self._fs.invalidate_cache()
        try:
            paths = self._ask("ls", f"{self._root}/{name}".rstrip("/"), detail=False)
        except RemoteMissing:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def _write(self, name: str, content: bytes) -> None:
        self._ask("pipe_file", f"{self._root}/{name}", content)
        if self._read(name) != content:
            raise RemoteError(
                f"{self.url}/{name} does not give back the {len(content):,} bytes that were written"
            )

    def _read(self, name: str) -> bytes:
        return bytes(self._ask("cat_file", f"{self._root}/{name}"))

    def _ask(self, operation: str, path: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._fs, operation)(path, *arguments, **options)
        except Exception as error:  # noqa: BLE001 - each backend raises its own; told, not hidden
            kind = RemoteMissing if isinstance(error, FileNotFoundError) else RemoteError
            # Without the cause: its text may hold what the URL's user part or query holds.
            raise kind(
                f"{operation} in {self.url} failed: {type(error).__name__}: "
                f"{self._clean(str(error))}"
            ) from None


def _contents(source: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Each file but the manifest, read when it is its turn and verified."""
    for file in manifest.files:
        yield file, read_verified(source, file, manifest)


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match["epoch"]), int(match["step"])


def _short_sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _cleaner(url: str) -> Callable[[str], str]:
    """A function that takes out of a text what a URL may hold of secrets."""
    parts = urlsplit(url)
    found = [parts.password, *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    secrets = {form for secret in found if secret for form in (secret, unquote(secret))}

    def clean(text: str) -> str:
        text = _QUERY.sub("", _USER.sub("", text))
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    return clean
