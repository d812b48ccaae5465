"""The page of experiments names every configuration, and nothing that is not there."""

from __future__ import annotations

import re

from live_run import EXPERIMENTS


def test_every_configuration_is_on_the_page_with_all_that_one_asks_of_it() -> None:
    page = (EXPERIMENTS / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+\.yaml)` \|(.*)\|$", page, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(p.name for p in EXPERIMENTS.glob("*.yaml"))
    for name, row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == 4 and all(cells), f"{name}: for, on, ends after, expect"
