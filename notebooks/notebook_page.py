"""A notebook that was run, as a page of Markdown with pictures beside it.

Invariant: the page refers only to files that are written with it or are in the docs, and shows what
GitHub shows: tables of figures as text, and pictures of what needs a browser.
"""

from __future__ import annotations

import base64
import html
import re
import shutil
from pathlib import Path
from typing import Any

from nbconvert import MarkdownExporter
from screenshots import picture_of_page, picture_of_widget
from traitlets.config import Config

_FRAME = re.compile(r'<iframe[^>]*?src="([^"]+)"', re.DOTALL)
_EMBEDDED = re.compile(r'<iframe[^>]*?srcdoc="([^"]+)"', re.DOTALL)
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
_NOTEBOOK_LINK = re.compile(r"\]\((\w+)\.ipynb\)")
_DOCS_LINK = re.compile(r"\]\(\.\./docs/")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
_CONFIG = Config(
    NbConvertBase={
        "display_data_priority": ["image/png", "text/markdown", "text/html", "text/plain"]
    }
)


def write_page(notebook: Any, name: str, pages: Path, ran_in: Path) -> Path:
    """Write PAGES/NAME.md and PAGES/NAME/*.png, in place of those of an earlier time.

    Args:
      notebook: with its outputs.
      name: of the notebook.
      pages: where to.
      ran_in: the directory that it ran in, where pages that it shows are.

    Raises:
      ScreenshotError: what takes the pictures is not installed.
    """
    state = notebook.metadata.get("widgets", {}).get(_STATE, {})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "data" in output:
                output["data"] = _readable(output["data"], ran_in, state)
    text, resources = MarkdownExporter(config=_CONFIG).from_notebook_node(
        notebook, resources={"unique_key": name, "output_files_dir": name}
    )
    shutil.rmtree(pages / name, ignore_errors=True)
    (pages / name).mkdir(parents=True)
    for file, data in resources["outputs"].items():
        (pages / file).write_bytes(data)
    page = pages / f"{name}.md"
    text = on_a_page(text).replace(f"{ran_in.resolve()}/", "")
    page.write_text(_TRAILING.sub("", text).strip() + "\n", encoding="utf-8")
    return page


def on_a_page(text: str) -> str:
    """A notebook's text, its links led to pages."""
    return _DOCS_LINK.sub("](../", _NOTEBOOK_LINK.sub(r"](\1.md)", text))


def _readable(data: Any, ran_in: Path, state: Any) -> Any:
    """An output's forms, without those that a page cannot show."""
    shown = data.get("text/html", "")
    if frame := _FRAME.search(shown):
        return {"image/png": _encoded(picture_of_page(ran_in / frame[1]))}
    if embedded := _EMBEDDED.search(shown):
        page = ran_in / "embedded.html"
        page.write_text(html.unescape(embedded[1]), encoding="utf-8")
        return {"image/png": _encoded(picture_of_page(page))}
    if _WIDGET in data:
        return {"image/png": _encoded(picture_of_widget(state, data[_WIDGET]))}
    if 'class="dataframe"' in shown:
        return {"text/plain": data["text/plain"]}
    return data | ({"text/html": _STYLE.sub("", shown)} if shown else {})


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
