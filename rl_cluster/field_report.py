"""RUN/TASK/rovers/: what is known of a fleet's rovers and stream, for people and for the courier.

Invariant: `status.json` is replaced whole, so a reader sees an old one or a new one; what rovers
returned with each policy is in it, so that it outlives the reader of the stream.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from rl_cluster.disk import replacing, write_text_atomically
from rl_cluster.streams.codec import BEV_SHAPE
from rl_cluster.streams.episodes import FinishedEpisode
from rl_cluster.streams.fleet import RoverStatus
from rl_cluster.supervision.gate import Score

_VERSIONS = 50
_EPISODES = 50


def directory(task_dir: Path) -> Path:
    """Where a fleet's files are."""
    return task_dir / "rovers"


class FieldScores:
    """Returns of rovers' evaluation episodes by policy version, the newest of each."""

    def __init__(self, task_dir: Path) -> None:
        """Go on from what an earlier reader wrote."""
        self._returns: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_EPISODES))
        for version, returns in (read_status(task_dir) or {}).get("eval_returns", {}).items():
            self._returns[int(version)].extend(returns)

    def add(self, episodes: Iterable[FinishedEpisode]) -> None:
        """Take in episodes; those of training, or of no one policy, say nothing here."""
        for episode in episodes:
            if episode.is_eval and episode.policy_version is not None:
                self._returns[episode.policy_version].append(episode.total_reward)
        for version in sorted(self._returns)[:-_VERSIONS]:
            del self._returns[version]

    def record(self) -> dict[str, list[float]]:
        """As JSON has it."""
        return {str(version): list(returns) for version, returns in self._returns.items()}


def write_status(
    task_dir: Path, rovers: Iterable[RoverStatus], stream: Mapping[str, Any], scores: FieldScores
) -> None:
    """Replace status.json.

    Raises:
      OSError: the disk is full or gone; the old one stays.
    """
    path = directory(task_dir)
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "stream": dict(stream),
        "rovers": [asdict(rover) for rover in rovers],
        "eval_returns": scores.record(),
    }
    write_text_atomically(path / "status.json", json.dumps(content, allow_nan=False))


def read_status(task_dir: Path) -> dict[str, Any] | None:
    """status.json; None where there is none, or none that is whole."""
    try:
        content = json.loads((directory(task_dir) / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_scores(task_dir: Path) -> dict[int, Score]:
    """What rovers' evaluation episodes returned, by the version that they name."""
    returns = (read_status(task_dir) or {}).get("eval_returns", {})
    return {
        int(version): Score(sum(values) / len(values), len(values))
        for version, values in returns.items()
        if values
    }


def save_view(task_dir: Path, rover: str, row: np.ndarray) -> None:
    """Replace ROVER.png: what a rover saw last.

    Args:
      rover: its name.
      row: (ROW,) of a block.
    """
    picture = Image.fromarray(view_pixels(row)).resize((256, 256), Image.Resampling.NEAREST)
    with replacing(directory(task_dir) / f"{file_name(rover)}.png", durable=False) as file:
        picture.save(file, "PNG")


def view_pixels(row: np.ndarray) -> np.ndarray:
    """What a rover saw, obstacles red and cleared ground green.

    Args:
      row: (ROW,) of a block.

    Returns:
      (128, 128, 3) uint8.
    """
    view = np.clip(row[: math.prod(BEV_SHAPE)].astype(np.float32).reshape(BEV_SHAPE), 0, 1)
    picture = np.zeros((*BEV_SHAPE[1:], 3), np.uint8)
    picture[..., :2] = (255 * view.transpose(1, 2, 0)).astype(np.uint8)
    return picture


def file_name(rover: str) -> str:
    """A rover's name as a file's: another for each, without what a stranger could do with one."""
    return quote(rover, safe="")
