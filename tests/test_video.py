"""Videos: a small GIF of the stated speed that shows the frames it was given."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

import envs.atari
from rl_cluster.video import FRAME_MS, MAX_FRAMES, VideoRecorder


def frames_of(path: Path, mode: str) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.asarray(frame.convert(mode)) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize(("size", "scale"), [(84, 2), (42, 3)])
def test_grey_frames_come_back_enlarged_without_smoothing(
    tmp_path: Path, size: int, scale: int
) -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (9, size, size), dtype=np.uint8)
    recorder = VideoRecorder()
    for frame in given:
        recorder.add(frame)
    shown = frames_of(recorder.save(tmp_path / "film.gif"), "RGB")
    assert len(shown) == 5
    for frame, wanted in zip(shown, given[::2], strict=True):
        enlarged = wanted.repeat(scale, axis=0).repeat(scale, axis=1)
        # Where a frame lacks a grey level, Pillow's palettes may take the next one.
        assert frame.shape == (*enlarged.shape, 3)
        assert np.abs(frame - enlarged[:, :, None].astype(int)).max() <= 1


def test_colour_frames_keep_their_colours(tmp_path: Path) -> None:
    recorder = VideoRecorder()
    frame = np.zeros((210, 160, 3), np.uint8)
    frame[:105] = (200, 30, 60)
    recorder.add(frame)
    (shown,) = frames_of(recorder.save(tmp_path / "film.gif"), "RGB")
    assert shown.shape == (420, 320, 3)
    assert np.abs(shown[::2, ::2].astype(int) - frame).max() <= 8


def test_speed_is_as_stated_and_written_into_the_film(tmp_path: Path) -> None:
    recorder = VideoRecorder()
    for level in range(6):
        recorder.add(np.full((84, 84), 40 * level, np.uint8))
    with Image.open(recorder.save(tmp_path / "film.gif")) as film:
        assert film.info["comment"] == b"every 2nd step, 70 ms each"
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert durations == [FRAME_MS] * 3


def test_the_recorder_keeps_a_copy_of_the_beginning_only() -> None:
    recorder = VideoRecorder(max_frames=3)
    frame = np.zeros((84, 84), np.uint8)
    for _ in range(100):
        recorder.add(frame)
    assert len(recorder) == 3


def test_the_film_of_a_pong_game_is_small(tmp_path: Path) -> None:
    recorder = VideoRecorder()
    env = envs.atari.make("Pong", num_envs=1)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(2 * MAX_FRAMES):
        recorder.add(env.step(rng.integers(6, size=1))[0][0])
    env.close()
    path = recorder.save(tmp_path / "pong.gif")
    assert len(recorder) == MAX_FRAMES
    assert path.stat().st_size < 1_000_000


def test_a_film_replaces_an_older_one_and_a_failed_save_leaves_no_litter(tmp_path: Path) -> None:
    recorder = VideoRecorder()
    recorder.add(np.zeros((84, 84), np.uint8))
    recorder.save(tmp_path / "film.gif")
    recorder.add(np.zeros((84, 84), np.uint8))
    recorder.add(np.full((84, 84), 200, np.uint8))
    assert len(frames_of(recorder.save(tmp_path / "film.gif"), "L")) == 2
    (tmp_path / "a directory").mkdir()
    with pytest.raises(IsADirectoryError):
        recorder.save(tmp_path / "a directory")
    assert sorted(os.listdir(tmp_path)) == ["a directory", "film.gif"]


@pytest.mark.parametrize(
    "frame", [np.zeros((84, 84)), np.zeros((4, 84, 84), np.uint8), np.zeros(4, np.float32)]
)
def test_what_is_no_frame_is_refused_with_its_shape(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 frames"):
        VideoRecorder().add(frame)


def test_an_empty_film_and_one_without_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frame.*film\.gif"):
        VideoRecorder().save(tmp_path / "film.gif")
    with pytest.raises(ValueError, match="max_frames is 0"):
        VideoRecorder(max_frames=0)
