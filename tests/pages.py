"""The pages of this project: their links, and the blocks that a reader would copy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_run import ROOT

_FENCE = re.compile(r"^```(\S*) *\n(.*?)^```$", re.M | re.S)
_MARK = re.compile(r"<!-- *(run by|not run:|goes on:) *((?:(?!-->).)+?) *-->\s*\Z", re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.M)
_VARIABLE = re.compile(r"[A-Z_]+=\S*$")


def pages() -> list[Path]:
    """All of them; the one that begins the run that the others speak of comes first."""
    found = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")]
    return sorted(found, key=lambda page: (page.name != "start.md", page))


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment before it says of it."""

    page: Path
    language: str
    text: str
    mark: str
    """`run by`, `not run:`, `goes on:`, or nothing: it is executed."""
    said: str
    """The test, the reason, or what it prints once it is at work."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0]}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command, without variables that are set before it, and comments."""
        lines = re.sub(r"\\\n", " ", self.text).splitlines()
        words = [re.sub(r"(^|\s)#.*", "", line).split() for line in lines]
        bare = [[w for i, w in enumerate(ws) if not _is_set(ws, i)] for ws in words]
        return [command for command in bare if command]


def _is_set(words: list[str], place: int) -> bool:
    """Whether a word, and all before it, set a variable."""
    return all(_VARIABLE.match(word) for word in words[: place + 1])


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for fence in _FENCE.finditer(text):
        mark = _MARK.search(text[: fence.start()])
        said = mark.groups() if mark else ("", "")
        yield Block(page, fence[1], fence[2], *said)


def copied_blocks(page: Path) -> list[Block]:
    """Those that a reader would copy into a shell, or into Python."""
    return [block for block in blocks(page) if block.language in ("sh", "python")]


def links(page: Path) -> list[str]:
    """Targets of a page's links to files and headings of this project."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))
    found = [match[1] for match in _LINK.finditer(text)]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as forges make them."""
    seen: Counter[str] = Counter()
    found = set()
    for match in _HEADING.finditer(_FENCE.sub("", page.read_text())):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found
