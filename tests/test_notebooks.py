"""The notebooks' files: no outputs in them, a line for each in the docs, and a page that shows."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_page import on_a_page, write_page
from render_notebooks import notebooks

PNG = base64.b64encode(b"\x89PNG of a chart").decode()
DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert "widgets" not in notebook["metadata"]


def test_the_page_of_notebooks_lists_each() -> None:
    page = (DOCS / "notebooks.md").read_text()
    assert [path.name for path in notebooks() if path.name not in page] == []


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_s_page_was_rendered_from_what_it_says_now(path: Path) -> None:
    """`make notebooks` renders all of them anew."""
    page = (DOCS / "notebooks" / f"{path.stem}.md").read_text()
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        shown = f"```python\n{source}\n```" if cell["cell_type"] == "code" else on_a_page(source)
        assert re.sub(r"[ \t]+$", "", shown, flags=re.M) in page


def test_a_page_shows_what_a_browser_without_jupyter_can_show(tmp_path: Path) -> None:
    notebook = new_notebook(
        cells=[
            new_markdown_cell("See [two](02_two.ipynb) and [metrics](../docs/metrics.md)."),
            new_code_cell(
                "look",
                outputs=[
                    new_output("display_data", {"image/png": PNG, "text/html": "<b>moves</b>"}),
                    new_output("display_data", {"text/html": "<style>td {}</style><p>state</p>"}),
                    new_output(
                        "display_data",
                        {"text/html": '<table class="dataframe">', "text/plain": "loss 0.5"},
                    ),
                ],
            ),
        ]
    )
    page = write_page(notebook, "01_one", tmp_path, tmp_path)
    text = page.read_text()
    (picture,) = (tmp_path / "01_one").iterdir()
    assert picture.read_bytes() == base64.b64decode(PNG) and f"](01_one/{picture.name})" in text
    assert "[two](02_two.md)" in text and "[metrics](../metrics.md)" in text
    assert "<p>state</p>" in text and "loss 0.5" in text
    assert "<style" not in text and "dataframe" not in text and "moves" not in text
