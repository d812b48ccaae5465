"""Every kind of incident that a run can say is on the page that tells what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
KIND_AT = {
    "incident": 2,
    "Incident": 3,
    "notice": 0,
    "JournalNotice": 0,
    "StreamNotice": 0,
    "say": 0,
    "_say": 0,
    "keep_wish": 0,
}
"""Who makes an incident, and which argument is its kind."""


def kinds_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            at = KIND_AT.get(name)
            if at is not None and at < len(node.args):
                yield from _constants(node.args[at])


def _constants(node: ast.expr) -> Iterator[str]:
    """The strings that an expression may be: one, or those of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


def test_every_kind_of_incident_is_on_the_page_that_says_what_to_do() -> None:
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z_]+)`", page[page.index("## What to do when") :]))
    said = {
        kind
        for path in (ROOT / "rl_cluster").rglob("*.py")
        for kind in kinds_in(path)
        if re.fullmatch(r"[a-z]+(_[a-z]+)*", kind)
    }
    assert {"worker_failed", "journal_stopped", "worse_than_random", "paused"} <= said
    assert said - told == set()
