"""Chaos of every kind for an hour, from a fixed seed; and growth of a run that is left alone.

What holds under chaos: the run goes on, its invariants stand at the end, and nobody but victims is
ever found to have failed. The figure is goodput: updates beside those of the same run in peace.
Growth is a line fitted through each process's own memory and files, and through the object store
and the control store, carried on to 24 hours.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from chaos.counts import count, only_in_full
from chaos.figures import record_figure
from chaos.support import DAEMONS, WORKERS, ChaosRun, chaos_run, stale_writes

pytestmark = pytest.mark.chaos

SEED = 4
CHAOS_S = count(60 * float(os.environ.get("RL_CLUSTER_CHAOS_MINUTES", "60")), 30.0)
PEACE_S = count(300.0, 8.0)
PAUSE_S = count((10.0, 50.0), (4.0, 8.0))
GROWTH_S = 60 * float(os.environ.get("RL_CLUSTER_GROWTH_MINUTES", "45"))
_SAMPLE_S = 10.0
_DAY_S = 86_400.0
_EXPLAINED_S = 90.0
"""So long after a fault, failures that follow from it may be found."""


_LEANS_ON = {"learner": ("replay",), "rollout": ("replay",)}


@dataclass(frozen=True)
class Fault:
    """What was done, and when, unix s."""

    time_s: float
    role: str
    number: int


@pytest.mark.timeout(CHAOS_S + PEACE_S + 600)
@only_in_full("two runs, one after the other")
def test_mixed_chaos_costs_work_but_breaks_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with chaos_run(tmp_path, "defaults.checkpoint.keep=100000") as run:
        start = run.updates()
        time.sleep(PEACE_S)
        peace = (run.updates() - start) / PEACE_S
        assert not run.incidents(), run.story()
        start, start_s = run.updates(), time.time()
        faults = _hurt(run, rng, start_s + CHAOS_S)
        chaos = (run.updates() - start) / (time.time() - start_s)
        run.await_rise(("learner_updates", "env_steps"), time.time())
        unexplained = _unexplained(run, faults)
        assert not unexplained, f"{faults}\n{unexplained}\n{run.story()}"
        lost_s = run.end_well()
        assert stale_writes(run.run_dir / "Catch") == 0
    record_figure("mixed chaos", "faults", len(faults), "times")
    record_figure("mixed chaos", "goodput", 100 * chaos / peace, "%")
    record_figure("mixed chaos", "false kills", 0, "times")
    record_figure("mixed chaos", "most work lost", lost_s, "s")


def _hurt(run: ChaosRun, rng: random.Random, until_s: float) -> list[Fault]:
    """Kill and freeze until it is time; the cluster itself only as often as a keeper bears."""
    faults: list[Fault] = []
    clusters_lost = 0
    while time.time() < until_s:
        time.sleep(rng.uniform(*PAUSE_S))
        role = rng.choice((*WORKERS, *WORKERS, "supervisor", "keeper", *DAEMONS))
        number = signal.SIGSTOP if rng.random() < 0.25 and role in WORKERS else signal.SIGKILL
        if role in DAEMONS and (clusters_lost := clusters_lost + 1) > CHAOS_S / 300:
            continue
        for victim in run.role(role)[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                faults.append(Fault(time.time(), role, number))
                victim.send_signal(number)
    return faults


def _unexplained(run: ChaosRun, faults: list[Fault]) -> list[dict[str, object]]:
    """Failures that no fault explains: of another worker, or without any fault before."""
    strange = []
    for incident in run.incidents(0, "worker_failed"):
        recent = [f.role for f in faults if 0 <= incident["time"] - f.time_s <= _EXPLAINED_S]
        role = str(incident["worker"]).partition(":")[0]
        if not {role, *_LEANS_ON.get(role, ()), *DAEMONS, "supervisor"} & set(recent):
            strange.append(incident)
    return strange


@only_in_full("growth shows after many minutes only")
@pytest.mark.timeout(GROWTH_S + 600)
def test_a_run_left_alone_does_not_grow(tmp_path: Path) -> None:
    settings = ("defaults.evaluation.period_s=30", "defaults.checkpoint.period_s=20")
    samples: list[tuple[float, dict[str, float]]] = []
    with chaos_run(tmp_path, *settings) as run:
        end_s = time.monotonic() + GROWTH_S
        while time.monotonic() < end_s:
            samples.append((time.monotonic(), _sizes(run)))
            time.sleep(_SAMPLE_S)
        assert not run.incidents(), run.story()
        run.end_well(period_s=20)
    for name in samples[-1][1]:
        settled = [(t, sizes[name]) for t, sizes in samples[len(samples) // 3 :] if name in sizes]
        growth, level, within = _growth(settled)
        unit = "files" if name.startswith("files") else "bytes"
        record_figure("growth", f"{name}, after warm-up", level, unit)
        record_figure("growth", f"{name}, carried on to 24 h", 100 * growth, "%")
        assert within < 0.1, f"{name} grew by {100 * within:.0f} % within minutes"


def _sizes(run: ChaosRun) -> dict[str, float]:
    """Private bytes and open files of each process, and the object store's bytes, by name.

    What processes share is left out: a page of the object store that is touched for the first time
    would count as growth of whoever touched it, though the store stays as large as it is.
    """
    sizes: dict[str, float] = {"object store": float(run.summary()["object_store_bytes"] or 0)}
    for process in run.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            name = f"{_label(process)} {process.pid}"
            memory = process.memory_info()
            sizes[f"memory of {name}"] = float(memory.rss - memory.shared)
            sizes[f"files of {name}"] = float(process.num_fds())
    return sizes


def _label(process: psutil.Process) -> str:
    """Module, script or program that it runs; a worker's actor."""
    arguments = (Path(part).name for part in process.cmdline()[1:] if not part.startswith("-"))
    return next(arguments, process.name().partition(".")[0])


def _growth(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Share grown in a day by a fitted line, its mean level, and the share grown while watched."""
    times_s, values = np.array(points).T
    slope = float(np.polyfit(times_s - times_s[0], values, 1)[0]) if len(points) > 2 else 0.0
    level = max(1.0, float(values.mean()))
    return slope * _DAY_S / level, level, slope * (times_s[-1] - times_s[0]) / level
