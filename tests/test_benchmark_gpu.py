"""The GPU's benchmark, tried on a CPU: it runs to its end, and its table lacks nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "gpu.py"

EXPECTED = [
    ("peak", "bfloat16 matrix product"),
    *(("update", f"{net}, batch {size}") for net in ("Nature", "tiny") for size in (16, 32, 64)),
    *(("gather", f"batch {size}, on the device") for size in (16, 32, 64) for _ in range(2)),
    *((row, "Nature, batch 32, 10,000 steps/s inserted")
      for row in ("fed learning", "busy", "busy, by the driver")),
]  # fmt: skip


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=directory,
        env={**os.environ, "GOMP_SPINCOUNT": "0"},
        capture_output=True,
        text=True,
        timeout=380,
    )


@pytest.mark.timeout(400)  # eleven seconds of a core, which may be shared
@pytest.mark.long
def test_every_row_is_printed_and_written(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench-results" / "gpu.json").read_text())
    rows = result["rows"]
    assert [(row["row"], row["setting"]) for row in rows] == EXPECTED
    assert result["machine"]["device"] == "cpu"
    for row in rows:
        assert row["us"] is not None or row["note"]
        if row["peer"]:
            assert row["ratio"] == pytest.approx(row["us"] / row["peer_value"])
    lines = done.stdout.splitlines()
    for name, setting in EXPECTED:
        assert any(line.startswith(name) and setting in line for line in lines)
    assert "rl-cluster train experiments/pong_gpu.yaml" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cuda")
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
