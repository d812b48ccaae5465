"""CleanRL's `dqn_atari.py`, unmodified, as a training program that the benchmark watches.

The script is run from the person's checkout under an environment id of ours: the same game, whose
frames are counted on the way. Four frames are one step; the few frames of the no-ops after a reset
count, too, which flatters the script by less than 1 %. Its stated options that we set: the buffer's
size, when learning starts, how often it updates, and an exploration that ends when learning begins,
so that it acts with its network as all others do. It has one network and one environment.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import gymnasium
from ale_py.env import AtariEnv
from serve import arguments
from train_progress import Progress

GAME = "PongNoFrameskip-v4"
COUNTED = "CountedPongNoFrameskip-v4"
FRAMES_PER_STEP = 4
TOTAL_STEPS = 10_000_000


class CountedAtari(AtariEnv):
    """The game, with its frames counted.

    Args:
      progress: receives the steps since the start.
      game: the game's own arguments.
    """

    def __init__(self, progress: Progress, **game: Any) -> None:
        super().__init__(**game)
        self._progress, self._frames = progress, 0

    def step(self, action: Any) -> Any:
        """Play one frame."""
        self._frames += 1
        self._progress.reached(self._frames // FRAMES_PER_STEP)
        return super().step(action)


def main() -> None:
    """Train until killed."""
    asked = arguments()
    progress = Progress(asked["counts"])
    game = gymnasium.spec(GAME)
    gymnasium.register(
        COUNTED,
        lambda **game: CountedAtari(progress, **game),
        max_episode_steps=game.max_episode_steps,
        kwargs=game.kwargs,
    )
    options = {
        "env-id": COUNTED,
        "total-timesteps": TOTAL_STEPS,
        "buffer-size": asked["capacity"],
        "learning-starts": asked["learning_starts"],
        "exploration-fraction": asked["learning_starts"] / TOTAL_STEPS,
        "end-e": asked["epsilon"],
        "batch-size": asked["batch"],
        "train-frequency": round(asked["batch"] / asked["samples_per_insert"]),
    }
    script = f"{asked['checkout']}/cleanrl/dqn_atari.py"
    sys.path.insert(0, asked["checkout"])
    sys.argv = [script, "--no-cuda", *(f"--{name}={value}" for name, value in options.items())]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
