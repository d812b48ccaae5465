"""The suite: us and our peers in turn on this machine, one table, one JSON file.

`make bench` runs every row, `make bench-quick` B1 to B5 in under ten minutes. Rows can be chosen:

    .venv/bin/python experiments/benchmarks/bench.py --rows b1 b4 --cleanrl CHECKOUT

Invariant: a row that fails is a row of the table with its reason, and the exit code says so; the
others are measured all the same.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import peers
import results
from plan import Measure, Plan
from results import Row
from sides import ROOT, BenchmarkError

MODULES = {
    "b1": "b1_replay",
    "b2": "b2_replay_ray",
    "b3": "b3_rollout",
    "b4": "b4_end_to_end",
    "b5": "b5_weights",
    "b7": "b7_growth",
    "b8": "b8_learning",
    "b9": "b9_intake",
    "b10": "b10_latency",
    "b11": "b11_load",
    "b12": "b12_sac",
}
QUICK = ("b1", "b2", "b3", "b4", "b5")
PEERS = ("sb3", "torchrl", "cpprb", "tianshou", "rllib", "cleanrl", "reverb")
OURS = ("rl-cluster", "ray", "torch", "envpool", "numpy", "gymnasium")
CHECKOUT = "RL_CLUSTER_CLEANRL"


def measured(name: str, plan: Plan) -> tuple[list[Row], bool]:
    """Rows of one module, and whether it came to its end."""
    print(f"{time.strftime('%H:%M:%S')} {name}: measuring", flush=True)
    measure: Measure = importlib.import_module(MODULES[name]).measure
    try:
        return measure(plan), True
    except BenchmarkError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return [results.missing(name, "", "", "", str(error))], False
    except Exception as error:  # noqa: BLE001 - a row's failure must not cost the other rows
        traceback.print_exc()
        return [results.missing(name, "", "", "", f"{type(error).__name__}: {error}")], False


def main() -> int:
    """Measure, print the table, write it; 1 where a row failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="B1 to B5, fewer settings")
    parser.add_argument("--rows", nargs="+", choices=MODULES, help="these rows only")
    parser.add_argument(
        "--cleanrl",
        type=Path,
        metavar="CHECKOUT",
        default=Path(found) if (found := os.environ.get(CHECKOUT)) else None,
        help=f"checkout of github.com/vwxyzjn/cleanrl (default: ${CHECKOUT})",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results" / "latest.json")
    arguments = parser.parse_args()

    # Otherwise a side that is frozen would outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = arguments.rows or (QUICK if arguments.quick else tuple(MODULES))
    missing = peers.install(PEERS)
    rows: list[Row] = []
    whole = True
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        checkout = arguments.cleanrl.resolve() if arguments.cleanrl else None
        plan = Plan(arguments.quick, Path(scratch), missing, checkout)
        plan.versions |= peers.our_versions(OURS)
        for name in chosen:
            measured_rows, ended = measured(name, plan)
            rows += measured_rows
            whole &= ended
            results.write(arguments.out, rows, plan.versions)
    results.show(rows)
    print(f"load: {results.load(rows)}\nwritten: {arguments.out}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
