"""Links of pages lead somewhere, and whatever a block says is run, or says why it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from live_run import ROOT
from pages import Block, anchors, blocks, copied_blocks, links, pages

from rl_cluster.cli_parser import make_parser

BLOCKS = [block for page in pages() for block in copied_blocks(page)]
SHELLS = {"bash", "shell", "console", "zsh", "shell-session"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [*pages(), *(ROOT / "docs/notebooks").glob("*.md")], ids=name)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    for target in links(page):
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(place), f"{name(page)} links to {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    assert {page for page in pages() if page.parent == index.parent} - {index} <= linked


def test_shell_blocks_have_one_name() -> None:
    assert not [b for page in pages() for b in blocks(page) if b.language in SHELLS], "say sh"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_a_page_has_one_python_block_at_most(page: Path) -> None:
    """Each is run by an interpreter of its own, which knows nothing of another's names."""
    assert [block.language for block in copied_blocks(page)].count("python") <= 1


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_that_names_a_test_is_run_there(block: Block) -> None:
    if block.mark != "run by":
        return
    text = source(ROOT / block.said, set())
    if f'"{block.page.name}"' in text:
        return  # it reads the commands from the page itself
    assert block.language == "sh", f"{block.said} does not read {block}"
    for command in block.commands:
        program, *arguments = command
        subcommand = next((word for word in arguments if not word.startswith("-")), program)
        for word in (Path(program).name, Path(subcommand).name):
            # A test that reads its commands from the page runs them all.
            assert block.page.name in text or re.search(
                rf"(?<![\w-]){re.escape(word)}(?![\w-])", text
            ), f"{block.said} does not run {' '.join(command)}"


def source(test: Path, seen: set[Path]) -> str:
    """Text of a test and of the tests' modules that it imports."""
    seen.add(test)
    text = test.read_text()
    for module in re.findall(r"^from ([\w.]+) import", text, re.M):
        path = ROOT / "tests" / f"{module.replace('.', '/')}.py"
        if path.exists() and path not in seen:
            text += source(path, seen)
    return text.replace("rl_cluster.cli", "rl-cluster")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    if block.mark == "not run:":
        assert len(block.said.split()) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_nothing_in_a_block_has_to_be_filled_in(block: Block) -> None:
    """Capitals would be copied as they are; variables are set in the page."""
    words = [w for command in block.commands for w in command if block.mark != "not run:"]
    assert not [w for w in words if re.fullmatch(r"[A-Z]{2,}[A-Z_]*|\[.*\]|<.*>|…", w)]


def test_the_readme_lists_the_commands_that_there_are() -> None:
    (usage,) = [b for b in blocks(ROOT / "README.md") if b.language == "text" and b.commands]
    listed = {name for command in usage.commands for name in command[1].split("|")}
    known = re.findall(r"^    ([a-z-]+)(?:  |$)", make_parser().format_help(), re.M)
    assert listed == set(known)
