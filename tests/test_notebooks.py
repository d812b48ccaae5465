"""The notebooks' files: no outputs in them, and none of them is left out of the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from render_notebooks import notebooks

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
