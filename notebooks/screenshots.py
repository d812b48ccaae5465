"""Pictures of what only a browser can draw: a page, or widgets in the state that a notebook keeps.

Invariant: nothing is loaded from the network by the browser. What draws the widgets is Jupyter's
own html-manager, which npm fetches first.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

_LIBRARIES = ("@jupyter-widgets/html-manager@1.0.15", "requirejs@2.3.8")
_WINDOW = "1000,760"
_WIDGETS = """<!doctype html><meta charset="utf-8"><body style="font-family: sans-serif">
<script src="requirejs/require.js"></script>
<script src="html-manager/dist/embed-amd.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
<script type="application/vnd.jupyter.widget-view+json">{view}</script>"""


class ScreenshotError(RuntimeError):
    """No picture could be taken; the message says what is missing."""


def picture_of_page(page: Path) -> bytes:
    """A local page as PNG, without the white around it.

    Raises:
      ScreenshotError: there is no Chromium.
    """
    file = page.with_suffix(".png")
    _run(
        "chromium",
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--virtual-time-budget=8000",
        f"--window-size={_WINDOW}",
        f"--screenshot={file}",
        page.resolve().as_uri(),
    )
    picture = Image.open(file).convert("RGB")
    drawn = ImageChops.difference(picture, Image.new("RGB", picture.size, picture.getpixel((0, 0))))
    left, top, right, bottom = drawn.getbbox() or (0, 0, *picture.size)
    # Few colours are enough for a page, and a third of the bytes.
    small = picture.crop((max(0, left - 8), max(0, top - 8), right + 8, bottom + 8)).quantize(128)
    data = io.BytesIO()
    small.save(data, "PNG", optimize=True)
    return data.getvalue()


def picture_of_widget(state: dict[str, Any], view: dict[str, Any]) -> bytes:
    """A widget as PNG.

    Args:
      state: of all widgets, as a notebook's metadata have it.
      view: which of them, as an output's data have it.

    Raises:
      ScreenshotError: there is no Chromium or no npm.
    """
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for library in _LIBRARIES:
            _fetch(library, place)
        page = place / "page.html"
        text = _WIDGETS.format(state=_embedded(state), view=_embedded(view))
        page.write_text(text, encoding="utf-8")
        return picture_of_page(page)


def _fetch(library: str, place: Path) -> None:
    """Unpack a library of npm's registry to PLACE/NAME, without running anything of it."""
    done = _run("npm", "pack", "--silent", "--ignore-scripts", library, cwd=place)
    shutil.unpack_archive(place / done.stdout.split()[-1], place, filter="data")
    (place / "package").rename(place / library.rsplit("@", 1)[0].rpartition("/")[2])


def _embedded(value: dict[str, Any]) -> str:
    return json.dumps(value).replace("</", "<\\/")


def _run(
    program: str, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [program, *arguments]
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=120, cwd=cwd
        )
    except FileNotFoundError:
        raise ScreenshotError(f"{program} is not installed: it draws the docs' pictures") from None
    except subprocess.CalledProcessError as error:
        raise ScreenshotError(f"{program} failed: {error.stderr}") from error
