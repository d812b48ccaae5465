"""B8: how long Pong takes to a mean of 18 on this machine: us, then the best peer, each alone.

Ours is `experiments/pong_cpu.yaml`, judged by its own evaluations: whole games of the newest
checkpoint (ε = 0.001), counted from the moment that an evaluation is written. The peer is CleanRL's
`dqn_atari.py`, judged by the training games that it prints (ε falls to 0.01 in it), the mean of the
last 20. It keeps its defaults but for two: the run is as long as the time it has
(`--total-timesteps`), because ε falls over the first tenth of the run and its default of ten
million steps would keep it exploring for the whole two hours; and its replay is as large as ours,
because a million of its stacked frames take 28 GB.

Invariant: the clock of a side starts with its process; a side that does not get there says how far
it came.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peers import python_of
from plan import Plan
from results import Row, missing
from sides import ROOT, BenchmarkError, Tree, Watch, Window, run_once, side_mark

from rl_cluster.telemetry.jsonl import read_lines

ROW, SETTING, UNIT = "B8 learning", "Pong to a mean of 18", "minutes"
TARGET, GAMES = 18.0, 20
CAP_S = 7_200.0
LOOK_S = 2.0
FRAME_SKIP = 4

CONFIG = ROOT / "experiments" / "pong_cpu.yaml"
TASK = "Pong"
SCRIPT = "cleanrl/dqn_atari.py"
TOTAL_TIMESTEPS = 1_000_000
"""A little more than two hours of what was measured on two cores (125 steps/s)."""
BUFFER = 300_000
# The checkout registers no games by itself.
START = "import ale_py, runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_EPISODE = re.compile(r"global_step=(\d+), episodic_return=\[?\s*(-?[\d.]+)")


@dataclass(frozen=True)
class Score:
    """One point of a learning curve."""

    minutes: float
    """Since the side's process was started."""
    env_frames: int
    mean_return: float


NewScores = Callable[[float], list[Score]]
"""What came since the last call; takes the Unix time at which the process was started."""


@dataclass(frozen=True)
class Result:
    """How one side learned."""

    curve: Sequence[Score]
    window: Window
    """The whole session; its amount is environment frames."""

    @property
    def minutes(self) -> float | None:
        """Minutes to the target; None where it was not reached."""
        return next((s.minutes for s in self.curve if s.mean_return >= TARGET), None)

    def __str__(self) -> str:
        """How far it came, in words."""
        if self.minutes is not None:
            return f"{self.minutes:.1f} min, {self.curve[-1].env_frames:,} frames"
        told = f"not reached within {self.window.wall_s / 60:.1f} min"
        best = max(self.curve, key=lambda score: score.mean_return, default=None)
        if best is None:
            return f"{told}: no mean of {GAMES} games yet"
        return f"{told}: best {best.mean_return:.1f} at {best.minutes:.1f} min"


def learn(
    command: Sequence[str],
    directory: Path,
    packages: Path,
    new_scores: NewScores,
    cap_s: float,
) -> Result:
    """Run a side until its mean is there or its time is over.

    Args:
      command: the side's program.
      directory: made for it to work in; its output goes to `output.log` there.
      packages: where its own modules are found.
      new_scores: reads what it has reached.
      cap_s: its time.

    Raises:
      BenchmarkError: it failed by itself.
    """
    directory.mkdir(parents=True)
    log = directory / "output.log"
    started_s = time.time()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(packages), **side_mark()},
        )  # fmt: skip
    tree = Tree(process.pid)
    try:
        watch, curve = Watch(tree), list[Score]()
        while _goes_on(process, log) and time.time() < started_s + cap_s:
            time.sleep(LOOK_S)
            tree.cpu_s()  # a process that ends between two looks would take its time with it
            curve += new_scores(started_s)
            if any(score.mean_return >= TARGET for score in curve):
                break
        frames = curve[-1].env_frames if curve else 0
        return Result(curve, watch.window(frames, time.time() - started_s))
    finally:
        tree.end()
        process.wait()


def _goes_on(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the side is still at work; BenchmarkError where it failed."""
    code = process.poll()
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise BenchmarkError(lines[-1] if lines else f"ended with {code}")
    return code is None


def learn_ours(plan: Plan, cap_s: float) -> Result:
    """Train with our command."""
    directory = plan.scratch / "b8-ours"
    run = directory / "run"
    program = str(Path(sys.executable).parent / "rl-cluster")
    limit = f"max_seconds={cap_s}"
    command = [program, "train", str(CONFIG), "--set", limit, "--run", str(run)]
    return learn(command, directory, ROOT, Evaluations(run / TASK / "evaluations.jsonl"), cap_s)


class Evaluations:
    """Scores of our run: its evaluations of enough games."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0

    def __call__(self, started_s: float) -> list[Score]:
        """Scores that were written since the last call."""
        lines = list(read_lines(self._path))[self._seen :]
        self._seen += len(lines)
        return [
            Score((line["time"] - started_s) / 60, line["env_frames"], line["mean_return"])
            for line in lines
            if line["episodes"] >= GAMES
        ]


def learn_cleanrl(plan: Plan, checkout: Path, cap_s: float) -> Result:
    """Train with CleanRL's script."""
    directory = plan.scratch / "b8-cleanrl"
    script = [str(python_of("cleanrl")), "-u", "-c", START, str(checkout / SCRIPT)]
    options = [
        "--env-id", "PongNoFrameskip-v4", "--no-cuda",
        "--total-timesteps", str(TOTAL_TIMESTEPS), "--buffer-size", str(BUFFER),
    ]  # fmt: skip
    scores = PrintedGames(directory / "output.log")
    return learn([*script, *options], directory, checkout, scores, cap_s)


class PrintedGames:
    """Scores of CleanRL: the mean of its last games, once there are enough."""

    def __init__(self, log: Path) -> None:
        self._log, self._read = log, 0
        self._returns: deque[float] = deque(maxlen=GAMES)

    def __call__(self, started_s: float) -> list[Score]:
        """Scores of the games that ended since the last call."""
        minutes = (time.time() - started_s) / 60
        scores = []
        for step, game_return in self._games():
            self._returns.append(game_return)
            if len(self._returns) == GAMES:
                mean = sum(self._returns) / GAMES
                scores.append(Score(minutes, FRAME_SKIP * step, mean))
        return scores

    def _games(self) -> Iterator[tuple[int, float]]:
        with self._log.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for step, game_return in _EPISODE.findall(whole.decode(errors="replace")):
            yield int(step), float(game_return)


def ratio_of(ours: Result, theirs: Result) -> float | None:
    """How many times as long the peer took; None unless both got there."""
    if ours.minutes is None or theirs.minutes is None:
        return None
    return theirs.minutes / ours.minutes


def row_of(ours: Result, peer: str, theirs: Result) -> Row:
    """The comparison, with both learning curves."""
    return Row(
        ROW,
        SETTING,
        UNIT,
        ours.minutes,
        peer,
        theirs.minutes,
        ratio_of(ours, theirs),
        note=f"us: {ours}; {peer}: {theirs}",
        raw={
            "us": [vars(ours.window)],
            "peer": [vars(theirs.window)],
            "our_curve": [asdict(score) for score in ours.curve],
            "peer_curve": [asdict(score) for score in theirs.curve],
        },
    )


def without_peer(ours: Result, peer: str, why: str) -> Row:
    """Our own result beside the reason why the peer has none."""
    reason = missing(ROW, SETTING, UNIT, peer, why).note
    curve = [asdict(score) for score in ours.curve]
    raw = {"us": [vars(ours.window)], "our_curve": curve}
    return Row(ROW, SETTING, UNIT, ours.minutes, peer, note=f"us: {ours}; {reason}", raw=raw)


def measure(plan: Plan, cap_s: float = CAP_S) -> list[Row]:
    """Let each side learn alone, for at most `cap_s` seconds."""
    ours = learn_ours(plan, cap_s)
    if plan.cleanrl is None:
        return [without_peer(ours, "CleanRL", "no checkout was named")]
    if why := plan.missing.get("cleanrl"):
        return [without_peer(ours, "CleanRL", why)]
    try:
        peer = f"CleanRL {_commit(plan.cleanrl)}"
        return [row_of(ours, peer, learn_cleanrl(plan, plan.cleanrl.resolve(), cap_s))]
    except BenchmarkError as error:
        return [without_peer(ours, "CleanRL", str(error))]


def _commit(checkout: Path) -> str:
    return run_once(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], 10).strip()
