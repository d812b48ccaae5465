"""What a page shows of a command's output, held against what the command printed.

A line of a page stands for one of the output: `…` is anything, a number any number, spaces are any
spaces. Lines stand in their order, others may come between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BLOCK = re.compile(
    r"<!-- run by [^>]* -->\n```sh\n(.*?)```(?:\n(?:(?!```).)*?```text\n(.*?)```)?", re.S
)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_PART = re.compile(r"(…|\d[\d.,:-]*|\s+)")


@dataclass(frozen=True)
class Step:
    """Commands that a reader types, and what the page shows of what they print."""

    commands: list[str]
    shown: list[str]


def steps(section: str) -> list[Step]:
    """Of a part of a page; comments and backslashes are taken out."""
    found = []
    for commands, shown in _BLOCK.findall(section):
        lines = commands.replace("\\\n", " ").splitlines()
        found.append(Step([re.sub(r"  +#.*", "", line) for line in lines], shown.splitlines()))
    return found


def check_shown(shown: Sequence[str], said: str) -> None:
    """Fail with the first line that was not printed behind those before it."""
    rest = _COLOUR.sub("", said).replace("\r", "")
    for line in shown:
        match = re.search(pattern(line), rest)
        assert match is not None, f"the page shows {line!r}; it is not in\n{rest}"
        rest = rest[match.end() :]


def pattern(line: str) -> str:
    """The lines that a line of a page stands for."""
    return "".join(_stands_for(part) for part in _PART.split(line.strip()) if part)


def _stands_for(part: str) -> str:
    if part == "…":
        return ".*"
    if part.isspace():
        return r"[^\S\n]+"
    return r"\d[\d.,:-]*" if part[0].isdigit() else re.escape(part)
