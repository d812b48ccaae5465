"""Results: interleaved turns become ratios with an interval, and rows of one JSON file.

Invariant: a ratio is the median over pairs of neighbouring turns, so that a slow drift of the
machine cancels out; its interval is a bootstrap over the pairs; a peer that could not be measured
has its row all the same, with the reason.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from sides import Side, Window

QUIET_CORES = 0.25
"""What others may use for a ratio to mean something: torch's threads spin while they wait for each
other, and one other busy process made CleanRL fifteen times slower on two cores."""
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Row:
    """One comparison, in the form that other programs read."""

    row: str
    """Such as `B1 replay`."""
    setting: str
    unit: str
    us: float | None
    peer: str
    """Empty where only the limit is compared."""
    peer_value: float | None = None
    ratio: float | None = None
    """us / peer, or peer / us where less is better: above 1, we are ahead."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    limit: float | None = None
    of_limit: float | None = None
    note: str = ""
    """Why a value is missing, or what else must be known to read it."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """What the figures were made from."""


Value = Callable[[Window], float]
MEASURES: tuple[tuple[str, Value], ...] = (
    ("/s", lambda window: window.rate),
    ("/CPU s", lambda window: window.per_cpu_second),
)


def pairs(us: Side, other: Side, seconds: float, rounds: int) -> list[tuple[Window, Window]]:
    """Let two sides work in turn, A B B A each round."""
    measured = []
    for _ in range(rounds):
        first = us.turn(seconds)
        measured.append((first, other.turn(seconds)))
        second = other.turn(seconds)
        measured.append((us.turn(seconds), second))
    return measured


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median (Efron 1979) of (k,) ratios."""
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def compare(
    row: str,
    setting: str,
    unit: str,
    peer: str,
    against_peer: Sequence[tuple[Window, Window]],
    against_limit: Sequence[tuple[Window, Window]] = (),
) -> list[Row]:
    """Rows in wall time and in CPU seconds from pairs of turns (ours, the other's).

    Args:
      row: name of the row.
      setting: what was measured.
      unit: units of work, such as `env steps`.
      peer: the other side's name with its version.
      against_peer: turns of ours beside the peer's.
      against_limit: turns of ours beside the limit's, if there is one.
    """
    rows = []
    for suffix, value in MEASURES:
        ratios = [value(ours) / value(theirs) for ours, theirs in against_peer]
        low, high = interval(ratios)
        limit, of_limit = _limit(against_limit, value)
        rows.append(
            Row(
                row,
                setting,
                unit + suffix,
                statistics.median(value(ours) for ours, _ in against_peer),
                peer,
                statistics.median(value(theirs) for _, theirs in against_peer),
                statistics.median(ratios),
                low,
                high,
                limit,
                of_limit,
                raw=_raw(against_peer),
            )
        )
    return rows


def missing(row: str, setting: str, unit: str, peer: str, why: str) -> Row:
    """Row of a peer that could not be measured."""
    lines = why.strip().splitlines()
    return Row(row, setting, unit, None, peer, note=lines[-1] if lines else "no reason given")


def _limit(
    turns: Sequence[tuple[Window, Window]], value: Value
) -> tuple[float | None, float | None]:
    if not turns:
        return None, None
    limit = statistics.median(value(limit) for _, limit in turns)
    return limit, statistics.median(value(ours) / value(limit) for ours, limit in turns)


def _raw(turns: Sequence[tuple[Window, Window]]) -> dict[str, Any]:
    return {"us": [vars(ours) for ours, _ in turns], "peer": [vars(peer) for _, peer in turns]}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in information if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
    }


def load(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how busy others kept the machine while each side was measured."""
    turns = [turn for row in rows for side in ("us", "peer") for turn in row.raw.get(side, [])]
    others = [turn["others_cores"] for turn in turns] or [0.0]
    return {
        "load_average_1_min": os.getloadavg()[0],
        "others_cores_median": statistics.median(others),
        "others_cores_max": max(others),
        "quiet": statistics.median(others) <= QUIET_CORES,
    }


def write(path: Path, rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """Write the rows, with all that they depend on, for other programs."""
    result = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "load": load(rows),
        "rows": [vars(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> None:
    """Print the table that a person reads."""
    table = Table(title="us beside our peers; ratios above 1: we are ahead")
    for column in ("row", "setting", "unit", "us", "peer", "its value", "ratio", "of the limit"):
        table.add_column(column, overflow="fold")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        if row.ratio_low is not None:
            ratio += f" ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        share = "" if row.of_limit is None else f"{row.of_limit:.0%} of {_figure(row.limit)}"
        table.add_row(
            row.row, row.setting, row.unit, _figure(row.us), row.peer,
            _figure(row.peer_value) or row.note, ratio, share,
        )  # fmt: skip
    Console(width=160).print(table)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
