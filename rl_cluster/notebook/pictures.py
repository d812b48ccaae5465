"""Films of games and blocks of replay, as a notebook shows them.

Invariant: blocks come from the journal on disk, which is only read: looking costs a run nothing,
and an ended run can be looked at as well.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence

from rl_cluster.notebook.curves import png_of
from rl_cluster.notebook.extra import needs
from rl_cluster.replay.block import Block
from rl_cluster.replay.journal_segments import RestoredBlock, list_segments, newest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRAMES = 8
"""Pictures in a row: of a film, or of a block."""
_INCHES = 1.3


class Videos:
    """Films of one task; in HTML they move, as a PNG each is a strip of frames.

    Args:
      task_dir: RUN/TASK.

    Raises:
      FileNotFoundError: there is none.
    """

    def __init__(self, task_dir: Path) -> None:
        found = (task_dir / "videos").glob("*.gif")
        self.paths = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        """The newest first."""
        if not self.paths:
            raise FileNotFoundError(
                f"{task_dir.name} has no videos: an evaluation of a game makes one, unless "
                "evaluation.video is false"
            )

    def _repr_html_(self) -> str:
        return "".join(_figure(path) for path in self.paths)

    def _repr_png_(self) -> bytes:
        strips = [_strip(path) for path in self.paths]
        width, height = max(s.width for s in strips), sum(s.height for s in strips)
        picture, top = Image.new("RGB", (width, height), "white"), 0
        for strip in strips:
            picture.paste(strip, (0, top))
            top += strip.height
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


class Blocks:
    """The newest blocks of one task: a row of observations each, with what was done and earned.

    Args:
      task_dir: RUN/TASK.
      count: blocks, one or more.

    Raises:
      FileNotFoundError: there is none on disk.
    """

    def __init__(self, task_dir: Path, count: int) -> None:
        found = newest_first(list_segments(task_dir / "replay"))
        whole = (item.block for item in found if isinstance(item, RestoredBlock))
        self.blocks = list(islice(whole, count))
        """The newest first."""
        self._of_rovers = (task_dir / "rovers").is_dir()
        if not self.blocks:
            raise FileNotFoundError(
                f"{task_dir.name} has no blocks on disk: none was collected yet, or "
                "replay.journal is false"
            )

    def figure(self) -> Figure:
        """Draw them: frames as they are, a rover's view from above, other vectors as bars.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
        """
        with needs("notebook"):
            from matplotlib.figure import Figure
        size = (_INCHES * _FRAMES, (_INCHES + 0.55) * len(self.blocks))
        figure = Figure(figsize=size, layout="constrained")
        parts = figure.subfigures(len(self.blocks), 1, squeeze=False)
        for part, block in zip(parts.flat, self.blocks, strict=True):
            part.suptitle(_title(block), fontsize=8, x=0.01, ha="left")
            grid = part.subplots(1, _FRAMES, squeeze=False)
            for row, axes in zip(_rows(block), grid.flat, strict=True):
                _draw_observation(axes, self._pixels(block.observations[row]))
                axes.set_xlabel(_caption(block, row), fontsize=7)
        return figure

    def _repr_png_(self) -> bytes:
        return png_of(self.figure())

    def _pixels(self, observation: np.ndarray) -> np.ndarray:
        if not self._of_rovers:
            return observation
        with needs("rovers"):
            from rl_cluster.field_report import view_pixels
        return view_pixels(observation)


def _rows(block: Block) -> Iterator[int]:
    last = block.context + block.core - 1
    yield from np.linspace(block.context, last, _FRAMES).astype(int).tolist()


def _title(block: Block) -> str:
    core = slice(block.context, block.context + block.core)
    low, high = block.policy_versions[core].min(), block.policy_versions[core].max()
    versions = f"{low}" if low == high else f"{low} to {high}"
    earned = float(block.rewards[core].sum())
    return (
        f"{block.source}, block {block.sequence}: {block.core} steps, policy {versions}, "
        f"rewards {earned:+.3g}"
    )


def _draw_observation(axes: Axes, pixels: np.ndarray) -> None:
    if pixels.ndim == 1:
        axes.bar(range(len(pixels)), pixels)
    else:
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _caption(block: Block, row: int) -> str:
    reward = f"reward {block.rewards[row]:+.3g}"
    if block.terminated[row] or block.truncated[row]:
        return f"the end\n{reward}"
    action = ", ".join(f"{value:.3g}" for value in np.atleast_1d(block.actions[row]))
    return f"action {action}\n{reward}"


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(f"{path.parent.parent.name}/videos/{path.name}")
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img alt="{name}" src="data:image/gif;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _strip(path: Path) -> Image.Image:
    with Image.open(path) as film:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, _FRAMES).astype(int)]
    width, height = chosen[0].size
    strip = Image.new("RGB", (_FRAMES * width, height))
    for index, frame in enumerate(chosen):
        strip.paste(frame, (index * width, 0))
    return strip
