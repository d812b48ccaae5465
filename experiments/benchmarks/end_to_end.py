"""Environment steps a second while learning: this system beside CleanRL's `dqn_atari.py`.

Both learn Pong with the Nature network, batches of 32 and 8 samples per environment step, on the
same machine in turn; only the last seconds of each run count, when both have been learning for a
while. CleanRL keeps its defaults, of which one favours it: its ε is still near 1, so that it hardly
ever runs its network to act.

The peer, in an environment of its own:

    git clone https://github.com/vwxyzjn/cleanrl CHECKOUT
    python3.11 -m venv ENV && ENV/bin/pip install torch==2.13.0 gymnasium==0.29.1 ale-py==0.10.1 \\
        'numpy<2' tyro opencv-python-headless tensorboard
    .venv/bin/python experiments/benchmarks/end_to_end.py \\
        --cleanrl CHECKOUT --cleanrl-python ENV/bin/python
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from harness import BenchmarkError, WatchedProcess, Window

from rl_cluster.agents.dqn import Transitions
from rl_cluster.config import RunConfig, load
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import build_agent
from rl_cluster.telemetry.jsonl import read_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "experiments" / "pong_benchmark.yaml"
WARM_UP_S = 30.0
ENDING_S = 120.0
"""Time beyond the measured one in which a side must have started and ended."""

BATCH = 32
SAMPLES_PER_INSERT = 8.0
TOLERANCE = 0.05
LIMIT_S = 8.0

SCRIPT = "cleanrl/dqn_atari.py"
START = "import ale_py, runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
STEPS_PER_LINE = 100
"""`dqn_atari.py` prints its speed every 100 environment steps, once it learns."""


def run_us(config: Path, seconds: float) -> Window:
    """Train for a while with our command; the window is the run's last `seconds`.

    Raises:
      BenchmarkError: it failed, or learned fewer than 8 samples per environment step.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        program = str(Path(sys.executable).parent / "rl-cluster")
        limit = f"max_seconds={WARM_UP_S + seconds}"
        command = [program, "train", str(config), "--set", limit, "--run", str(run)]
        timeout_s = WARM_UP_S + seconds + ENDING_S
        with WatchedProcess(command, cwd=ROOT, env={}, timeout_s=timeout_s) as process:
            output = [line for _, line in process.lines()]
            if code := process.exit_code():
                raise BenchmarkError("\n".join([*output[-20:], f"{command} ended with {code}"]))
            rows = [line for line in read_lines(run / "metrics.jsonl") if line.get("env_steps")]
            first, last = last_seconds(rows, seconds)
            env_steps = last["env_steps"] - first["env_steps"]
            check_learning(last["learner_updates"] - first["learner_updates"], env_steps)
            return process.window(first["time"], last["time"], env_steps)


def last_seconds(
    rows: list[dict[str, Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first and the last row of metrics of the last `seconds`."""
    counted = [line for line in rows if line["time"] >= rows[-1]["time"] - seconds] if rows else []
    if len(counted) < 2 or not counted[0]["learner_updates"]:
        raise BenchmarkError(f"no learning in the last {seconds:g} s; rows: {rows[:1] + rows[-1:]}")
    return counted[0], counted[-1]


def check_learning(updates: int, env_steps: int) -> None:
    """Refuse a window in which less was learned from each step than the peer learns."""
    ratio = updates * BATCH / env_steps if env_steps else 0.0
    if ratio < (1 - TOLERANCE) * SAMPLES_PER_INSERT:
        raise BenchmarkError(
            f"{updates} updates of {BATCH} in {env_steps} environment steps are {ratio:.2f} "
            f"samples per step; the peer learns {SAMPLES_PER_INSERT:g}"
        )


def run_cleanrl(checkout: Path, python: Path, seconds: float) -> Window:
    """Train for as long with CleanRL's script; the window is the same.

    Raises:
      BenchmarkError: it ended, or printed no speed, before the time was over.
    """
    script = [str(python), "-u", "-c", START, str(checkout / SCRIPT)]
    options = [
        "--env-id", "PongNoFrameskip-v4", "--no-cuda",
        "--learning-starts", "1000", "--buffer-size", "50000",
    ]  # fmt: skip
    total_s = WARM_UP_S + seconds
    with (
        tempfile.TemporaryDirectory() as scratch,
        WatchedProcess(
            [*script, *options],
            cwd=Path(scratch),
            env={"PYTHONPATH": str(checkout)},
            timeout_s=total_s + ENDING_S,
        ) as process,
    ):
        start, output, learning = time.time(), [], []
        for moment, line in process.lines():
            output.append(line)
            learning += [moment] if line.startswith("SPS:") else []
            if moment - start > total_s:
                break
        counted = [moment for moment in learning if moment >= start + WARM_UP_S]
        if len(counted) < 2 or time.time() < start + total_s:
            raise BenchmarkError("\n".join([*output[-20:], f"{script} did not learn to the end"]))
        return process.window(counted[0], counted[-1], STEPS_PER_LINE * (len(counted) - 1))


def update_limit(config: RunConfig) -> float:
    """Return the environment steps/s that this machine would allow if updates were all it did."""
    (task,) = config.tasks.values()
    spec = EnvironmentSpec((84, 84), np.dtype(np.uint8), num_actions=6, frame_skip=4)
    agent = build_agent(task.agent, task.learner, spec, torch.device("cpu"))
    frames = (BATCH, task.agent.frame_stack, *spec.obs_shape)
    per_row = torch.ones(BATCH)
    batch = Transitions(
        s_tm1=torch.randint(256, frames, dtype=torch.uint8),
        a_tm1=torch.zeros(BATCH, dtype=torch.int64),
        r_t=per_row,
        discount_t=per_row,
        s_t=torch.randint(256, frames, dtype=torch.uint8),
        weights=per_row,
    )
    agent.update(batch, 0)
    updates, start = 0, time.monotonic()
    while time.monotonic() < start + LIMIT_S:
        agent.update(batch, updates)
        updates += 1
    rate = updates / (time.monotonic() - start)
    return rate * BATCH / SAMPLES_PER_INSERT


def peer_versions(checkout: Path, python: Path) -> dict[str, str]:
    """Return the commit of the checkout and the versions in the peer's environment."""
    names = ["torch", "gymnasium", "ale-py", "numpy"]
    code = (
        "import importlib.metadata, json, sys; "
        "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
    )
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    asked = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True)
    found = json.loads(asked.stdout)
    return {"cleanrl": commit, **{f"cleanrl's {name}": found[name] for name in names}}


def main() -> None:
    """Measure, print the rows, write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cleanrl", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--cleanrl-python", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured in each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results" / "latest.json")
    arguments = parser.parse_args()

    checkout, python = arguments.cleanrl.resolve(), arguments.cleanrl_python.absolute()
    limit = update_limit(load(CONFIG))
    pairs = harness.interleaved(
        functools.partial(run_us, CONFIG, arguments.seconds),
        functools.partial(run_cleanrl, checkout, python, arguments.seconds),
        arguments.repeats,
    )
    setting = (
        f"Pong, Nature network, batch {BATCH}, samples per insert {SAMPLES_PER_INSERT:g}, "
        f"{arguments.repeats} x {arguments.seconds:g} s interleaved, learning on"
    )
    table = harness.Table(setting, f"CleanRL {SCRIPT}", pairs)
    table.add("end to end", "env steps/s", lambda window: window.rate, limit)
    table.add("end to end, work", "env steps/CPU s", lambda window: window.per_cpu_second)
    ours = harness.versions("rl-cluster", "ray", "torch", "envpool", "numpy")
    harness.write(arguments.out, table, {**ours, **peer_versions(checkout, python)})


if __name__ == "__main__":
    main()
