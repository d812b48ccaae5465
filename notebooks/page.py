"""A notebook that was run, as a page of Markdown with pictures beside it.

Invariant: the page refers only to files that are written with it, and shows what GitHub shows:
tables as text, pictures as PNG, and instead of a page within the page a picture of it.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from nbconvert import MarkdownExporter

_FRAME = re.compile(r'<iframe[^>]*?src="([^"]+)"', re.DOTALL)
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
_NOTEBOOK_LINK = re.compile(r"\]\((\w+)\.ipynb\)")
_DOCS_LINK = re.compile(r"\]\(\.\./docs/")
_WINDOW = "980,720"
_CONFIG = {
    "NbConvertBase": {
        "display_data_priority": ["image/png", "text/markdown", "text/html", "text/plain"]
    }
}


def write_page(notebook: Any, name: str, pages: Path, ran_in: Path) -> Path:
    """Write PAGES/NAME.md and PAGES/NAME/*.png.

    Args:
      notebook: with its outputs.
      name: of the notebook.
      pages: where to.
      ran_in: the directory that it ran in, where pages that it shows are.
    """
    for cell in notebook.cells:
        outputs = (_readable(output, ran_in) for output in cell.get("outputs", ()))
        cell["outputs"] = [output for output in outputs if output is not None]
    exporter = MarkdownExporter(config=_config())
    text, resources = exporter.from_notebook_node(
        notebook, resources={"unique_key": name, "output_files_dir": name}
    )
    pages.mkdir(parents=True, exist_ok=True)
    for file, data in resources["outputs"].items():
        picture = pages / file
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(data)
    page = pages / f"{name}.md"
    text = _DOCS_LINK.sub("](../", _NOTEBOOK_LINK.sub(r"](\1.md)", text))
    page.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip() + "\n")
    return page


def _config() -> Any:
    from traitlets.config import Config

    return Config(_CONFIG)


def _readable(output: Any, ran_in: Path) -> Any | None:
    """An output as the page shows it; None where it has nothing to show."""
    data = output.get("data", {})
    html = data.get("text/html", "")
    if frame := _FRAME.search(html):
        picture = _picture(ran_in / frame[1])
        output["data"] = {"image/png": picture} if picture else {}
    elif "application/vnd.jupyter.widget-view+json" in data:
        return None
    elif 'class="dataframe"' in html:
        del data["text/html"]
    elif html:
        data["text/html"] = _STYLE.sub("", html)
    return None if "data" in output and not output["data"] else output


def _picture(page: Path) -> str | None:
    """A local page as PNG, in base64; None where there is no Chromium to look at it."""
    browser = shutil.which("chromium")
    if browser is None:
        return None
    file = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={_WINDOW}"]
    subprocess.run(
        [browser, *options, f"--screenshot={file}", page.resolve().as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return base64.b64encode(file.read_bytes()).decode()
