"""A real local file system behind fsspec, with the faults of a remote one injected.

Invariant watched by itself: no file is written in a directory whose manifest is there.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FaultyFileSystem(LocalFileSystem):
    """`faulty://USER:PASSWORD@HOST/PATH?QUERY`; the faults are those of the class."""

    protocol = "faulty"
    cachable = False
    writes: ClassVar[int] = 0
    fail_every: ClassVar[int] = 0
    """Every such write is torn in the middle and raises."""
    fail_from: ClassVar[int | None] = None
    """This write and all later ones do the same."""
    corrupt: ClassVar[set[int]] = set()
    """The numbers of writes, from 1, of which one bit is another."""
    away: ClassVar[bool] = False
    """Everything raises, with the whole URL in the text."""
    fail_removals: ClassVar[bool] = False
    url: ClassVar[str] = ""
    open_gate: ClassVar[threading.Event] = threading.Event()
    """Cleared: writes wait for it."""
    log: ClassVar[list[str]] = []
    overwritten: ClassVar[list[str]] = []

    @classmethod
    def make_whole(cls) -> None:
        """No fault from now on, and nothing seen so far."""
        cls.writes, cls.fail_every, cls.fail_from, cls.away = 0, 0, None, False
        cls.corrupt, cls.log, cls.overwritten, cls.fail_removals = set(), [], [], False
        cls.open_gate.set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if path.startswith("faulty://"):
            path = "/" + path.removeprefix("faulty://").partition("?")[0].partition("/")[2]
        return super()._strip_protocol(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        kind = type(self)
        self._reach()
        assert kind.open_gate.wait(timeout=60)
        kind.writes += 1
        kind.log.append(f"write {Path(path).name}")
        if Path(path).parent.joinpath("manifest.json").exists():
            kind.overwritten.append(path)
        late = kind.fail_from is not None and kind.writes >= kind.fail_from
        if late or (kind.fail_every and kind.writes % kind.fail_every == 0):
            super().pipe_file(path, value[: len(value) // 2])
            raise ConnectionResetError(f"lost {kind.url} in the middle of a write")
        if kind.writes in kind.corrupt:
            value = bytes([value[0] ^ 1]) + value[1:]
        super().pipe_file(path, value)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        self._reach()
        return super().cat_file(path, *arguments, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        self._reach()
        return super().ls(path, detail=detail, **options)

    def rm_file(self, path: str) -> None:
        self._reach()
        type(self).log.append(f"remove {Path(path).name}")
        super().rm_file(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._reach()
        if self.fail_removals:
            raise PermissionError("not yours to remove")
        type(self).log.append(f"remove {Path(path).name}")
        super().rm(path, recursive, maxdepth)

    def _reach(self) -> None:
        if self.away:
            raise ConnectionError(f"cannot reach {self.url}, token s3cr3t refused")


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
