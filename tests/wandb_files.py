"""Reads what W&B wrote offline: LevelDB's log format, behind a header of seven bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK, _FRAGMENT = 7, 32_768, struct.Struct("<IHB")
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of one session's run-ID.wandb, in order."""
    data, position, record = path.read_bytes(), _HEADER, b""
    while position + _FRAGMENT.size <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _FRAGMENT.size:  # too little for a fragment: filled with zeros
            position += room
            continue
        _, length, kind = _FRAGMENT.unpack_from(data, position)
        position += _FRAGMENT.size
        record += data[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def sessions(run_dir: Path, run_id: str) -> list[Path]:
    """Files of all sessions of one W&B run, oldest first."""
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a session; inner keys stand behind a dot."""
    return [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.HasField("history")
    ]


def found(path: Path, kind: str) -> list[Any]:
    """All `run`, `alert` or `artifact` records of a session."""
    return [getattr(record, kind) for record in records(path) if record.HasField(kind)]
