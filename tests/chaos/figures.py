"""Figures of the fault suite: chaos-results/latest.jsonl, one line each, and printed.

A figure never fails a test: a slow machine is no fault. What has to hold is asserted beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chaos.counts import FULL

RESULTS = Path(__file__).parents[2] / "chaos-results" / "latest.jsonl"


def record_figure(row: str, name: str, value: float, unit: str) -> None:
    """Keep one figure.

    Args:
      row: of the table in docs/reliability.md, such as `kill -9 of a rollout`.
      name: what was measured.
      value: how much.
      unit: of the value, such as `s`.
    """
    figure = {"row": row, "name": name, "value": round(value, 4), "unit": unit}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(figure | {"full": FULL, "time": time.time()}) + "\n")
    print(f"{row}: {name} {value:.4g} {unit}")


def record_spread(row: str, name: str, values: Sequence[float], unit: str) -> None:
    """Keep p50, p95, the highest of some measurements, and how many there were."""
    p50, p95 = np.percentile(values, (50, 95))
    record_figure(row, f"{name}, p50", float(p50), unit)
    record_figure(row, f"{name}, p95", float(p95), unit)
    record_figure(row, f"{name}, highest", max(values), unit)
    record_figure(row, f"{name}, injected", len(values), "times")
