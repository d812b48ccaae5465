"""Short films of games, as small GIF files.

Invariant: a film is the game's beginning, at a fixed and stated speed: every 2nd environment step,
shown for 70 ms, which is about twice the speed of Atari played with a frame skip of 4. A path holds
a whole film or is untouched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rl_cluster.disk import replacing

STEPS_PER_FRAME = 2
FRAME_MS = 70  # GIF counts in hundredths of a second
MAX_FRAMES = 430  # 30 s
_SMALL_HEIGHT = 64  # below it, pixels are tripled instead of doubled
_COLOURS = 64


class VideoRecorder:
    """Collects the frames of one game; keeps every second one, `max_frames` at most."""

    def __init__(self, max_frames: int = MAX_FRAMES) -> None:
        """Keep `max_frames` (>= 1) frames, 70 ms of film each; what comes later is dropped."""
        if max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}; a film needs at least 1")
        self._max_frames = max_frames
        self._frames: list[np.ndarray] = []
        self._steps = 0

    def __len__(self) -> int:
        """How many frames the film has so far."""
        return len(self._frames)

    def add(self, frame: np.ndarray) -> None:
        """Take the frame of one environment step: uint8, (height, width) or (height, width, 3)."""
        if frame.dtype != np.uint8 or not (frame.ndim == 2 or frame.shape[2:] == (3,)):
            raise ValueError(
                f"a film is made of uint8 frames (height, width) or (height, width, 3), "
                f"not {frame.dtype} {frame.shape}"
            )
        if self._steps % STEPS_PER_FRAME == 0 and len(self._frames) < self._max_frames:
            self._frames.append(frame.copy())
        self._steps += 1

    def save(self, path: str | Path) -> Path:
        """Write the film to `path` (.gif), enlarged without smoothing; ValueError if empty."""
        if not self._frames:
            raise ValueError(f"no frame was recorded for {path}; add at least one")
        path = Path(path)
        images = [_to_image(frame) for frame in self._frames]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            images[0].save(
                file,
                format="GIF",
                save_all=True,
                append_images=images[1:],
                duration=FRAME_MS,
                loop=0,
                comment=f"every {STEPS_PER_FRAME}nd step, {FRAME_MS} ms each".encode(),
            )
        return path


def _to_image(frame: np.ndarray) -> Image.Image:
    height, width = frame.shape[:2]
    scale = 3 if height < _SMALL_HEIGHT else 2
    image = Image.fromarray(frame)
    if frame.ndim == 3:
        # Without dithering: it flickers from frame to frame, and defeats the compression.
        image = image.quantize(_COLOURS, dither=Image.Dither.NONE)
    return image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
