"""The GPU path beside eager PyTorch: updates, gathers, and how busy the GPU is while it learns.

    python experiments/benchmarks/gpu.py [--device cuda|cpu] [--seconds S]

Needs torch and numpy only (no Ray): it runs wherever the GPU is, and on a CPU to be tried.
Prints a table and writes bench-results/gpu.json. What is measured:

- updates a second of eager DQN, written plainly (autocast, fused Adam, one `.item()` each), and of
  ours, which is one CUDA graph; and which share of the measured matrix-product peak ours makes.
- batches a second that reach the device: gathered there, through page-locked memory, by plain
  copies.
- the share of the time that the GPU works while it learns from a resident replay that is being fed.

Invariant: both sides compute the same before either is timed, and they work in turn (A B B A).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

# On the machine with the GPU nothing need be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_agents import (
    BATCHES,
    NETWORKS,
    Network,
    OurDQN,
    PlainDQN,
    check_same,
    some_transitions,
    synchronize,
)
from gpu_replay import (
    FED_BATCHES,
    INSERT_RATE,
    LENGTH,
    Feed,
    Gathers,
    empty_replay,
    some_blocks,
    tensors_of,
)

from rl_cluster.agents.dqn import Transitions

OUTPUT = Path("bench-results/gpu.json")
END_TO_END = """End to end, with Ray and EnvPool on 16 cores:
  rl-cluster train experiments/pong_gpu.yaml --run runs/pong_gpu
GPU busy share: `nvidia-smi dmon -s u` meanwhile; the learner's waiting share is in
runs/pong_gpu/summary.json, minutes to a mean of 18 in runs/pong_gpu/Pong/evaluations.jsonl."""


@dataclass(frozen=True)
class Row:
    """One figure, in the words of `results.Row`."""

    row: str
    setting: str
    unit: str
    us: float | None
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    limit: float | None = None
    of_limit: float | None = None
    note: str = ""


class Side(NamedTuple):
    """Something to be timed."""

    step: Callable[[], object]
    finish: Callable[[], object]
    """Wait for what steps have begun."""

    def rate(self, seconds: float) -> float:
        """Steps a second over about so many seconds."""
        self.finish()
        start_s, steps = time.perf_counter(), 0
        while time.perf_counter() - start_s < seconds:
            self.step()
            steps += 1
        self.finish()
        return steps / (time.perf_counter() - start_s)


def in_turn(us: Side, other: Side, seconds: float) -> tuple[float, float]:
    """Rates of both, A B B A, after some steps to warm up."""
    for side in (us, other):
        side.rate(seconds / 4)
    rates = [side.rate(seconds) for side in (us, other, other, us)]
    return (rates[0] + rates[3]) / 2, (rates[1] + rates[2]) / 2


def peak_flops(device: torch.device, seconds: float) -> float:
    """FLOPs a second of a large bfloat16 matrix product."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    side = Side(lambda: torch.mm(left, right, out=product), lambda: synchronize(device))
    side.rate(seconds / 4)
    return side.rate(seconds) * 2.0 * size**3


def updates(device: torch.device, seconds: float) -> Iterator[Row]:
    """Updates a second, ours and eager, and the share of the peak."""
    peak = peak_flops(device, seconds)
    yield Row("peak", "bfloat16 matrix product", "TFLOP/s", peak / 1e12)
    for name, network in NETWORKS.items():
        for size in BATCHES[device.type]:
            batch = some_transitions(size, device)
            us, eager, flops = update_rates(network, batch, seconds)
            yield Row(
                "update", f"{name}, batch {size}", "updates/s", us,
                f"eager torch {torch.__version__}", eager, us / eager,
                peak / flops, us * flops / peak, "goal: 5 times" if size == 32 else "",
            )  # fmt: skip


def update_rates(
    network: Network, batch: Transitions, seconds: float
) -> tuple[float, float, float]:
    """Updates a second, ours and eager, and the FLOPs of one (its matrix products)."""
    device = batch.r_t.device
    plain = PlainDQN(network, device)
    ours = OurDQN(plain, network, device)
    check_same(plain, ours, batch)
    size = len(batch.a_tm1)
    few = batch.split(size // 8)[0]
    with FlopCounterMode(display=False) as counter:
        plain.update(few)
    flops = counter.get_total_flops() * size / len(few.a_tm1)
    us = Side(lambda: ours.begin(batch), ours.finish)
    eager = Side(lambda: plain.update(batch), lambda: synchronize(device))
    return *in_turn(us, eager, seconds), flops


def gathers(device: torch.device, seconds: float) -> Iterator[Row]:
    """Batches a second that reach the device."""
    blocks = some_blocks(200 if device.type == "cuda" else 8)
    for size in BATCHES[device.type]:
        ways = Gathers(blocks, size, device)
        ways.check_same()
        ways.use_all_memory()
        us = Side(ways.on_the_device, lambda: synchronize(device))
        others = {"page-locked ring": ways.page_locked, "plain copies": ways.plain_copies}
        for name, way in others.items():
            other = Side(way, lambda: synchronize(device))
            mine, theirs = in_turn(us, other, seconds)
            setting = f"batch {size}, on the device"
            yield Row("gather", setting, "batches/s", mine, name, theirs, mine / theirs)


def busy(device: torch.device, seconds: float) -> Iterator[Row]:
    """Share of the time that the device works while it learns from a replay that is being fed."""
    kept = 2_000 if device.type == "cuda" else 16
    feed = Feed(empty_replay(kept, device), kept, device)
    ours = OurDQN(PlainDQN(NETWORKS["Nature"], device), NETWORKS["Nature"], device)
    feed.start()
    try:
        learn(ours, feed, seconds / 4)
        inserted, start_s = feed.inserted, time.perf_counter()
        steps = learn(ours, feed, seconds)
        wall_s, used = time.perf_counter() - start_s, utilization(device)
        inserted = feed.inserted - inserted
    finally:
        feed.closed.set()
        feed.join()
    size = FED_BATCHES[device.type]
    worked_s = steps * step_seconds(ours, some_transitions(size, device))
    setting = f"Nature, batch {size}, {INSERT_RATE:,} steps/s inserted"
    note = f"{steps * size / max(1, inserted * LENGTH):.1f} samples per insert"
    yield Row("fed learning", setting, "updates/s", steps / wall_s, note=note)
    note = "goal: 0.95; updates times the time of one alone, by events"
    yield Row("busy", setting, "share of time", worked_s / wall_s, note=note)
    note = "" if used is not None else "nvidia-ml-py finds no GPU here"
    yield Row("busy, by the driver", setting, "share of time", used, note=note)


def learn(ours: OurDQN, feed: Feed, seconds: float) -> int:
    """Learn for so long from what is fed; return updates."""
    start_s, steps = time.perf_counter(), 0
    while time.perf_counter() - start_s < seconds:
        batch = feed.batches.get(timeout=60)
        batch.wait()
        ours.begin(tensors_of(batch))
        steps += 1
    ours.finish()
    return steps


def step_seconds(ours: OurDQN, batch: Transitions, steps: int = 20) -> float:
    """Time that the device works on one update, when the next is always there."""
    device = batch.r_t.device
    if device.type == "cpu":
        return 1 / Side(lambda: ours.begin(batch), ours.finish).rate(0.1)
    timed: Callable[..., torch.cuda.Event] = torch.cuda.Event
    start, end = timed(enable_timing=True), timed(enable_timing=True)
    start.record()
    for _ in range(steps):
        ours.begin(batch)
    end.record()
    torch.cuda.synchronize()
    ours.finish()
    return float(start.elapsed_time(end)) / 1e3 / steps


def utilization(device: torch.device) -> float | None:
    """Share of the driver's last sampling period in which a kernel ran, where it says so."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization() / 100
    except Exception:  # noqa: BLE001 - whatever is missing, the other figures stand
        return None


def show(rows: list[Row]) -> None:
    """Print the table that a person reads."""
    columns = ("row", "setting", "unit", "us", "beside", "its value", "ratio", "of the peak")
    table = [columns, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line, note in zip(table, ["note", *(row.note for row in rows)], strict=True):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([*cells, note]).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    share = "" if row.of_limit is None else f"{row.of_limit:.1%}"
    figures = (_figure(row.us), row.peer, _figure(row.peer_value), _figure(row.ratio), share)
    return (row.row, row.setting, row.unit, *figures)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on, and with what."""
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    return {
        "device": device.type,
        "gpu": gpu,
        "cpu_cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn of one side")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu tries the script")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as the learner's process
    rows = [row for part in (updates, gathers, busy) for row in part(device, asked.seconds)]
    show(rows)
    print(END_TO_END)
    result = {"machine": machine(device), "rows": [asdict(row) for row in rows]}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
