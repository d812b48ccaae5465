"""Imports point one way, files and functions stay small, and every dependency has its reason.

The rules are those of "The house" in the design: what each part may not know of.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("rl_cluster/**/*.py"), *ROOT.glob("envs/**/*.py")])

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40

RAY_LAYER = "rl_cluster.cluster"
PURE = ("rl_cluster.agents", "rl_cluster.replay", "rl_cluster.supervision")
WORKING_PARTS = (
    "rl_cluster.rollout",
    "rl_cluster.learner",
    "rl_cluster.evaluation",
    "rl_cluster.weights",
    "rl_cluster.checkpoint",
    "rl_cluster.streams",
    "rl_cluster.cli",
)
ON_TOP = ("rl_cluster", "rl_cluster.__main__", "rl_cluster.cli", "rl_cluster.cli_experiments")
"""What people call, and what may therefore start the cluster."""


class Import(NamedTuple):
    """One import statement's target, as an absolute dotted name."""

    target: str
    line: int
    for_types_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in the file, also those inside functions."""
    package = module if is_package else module.rpartition(".")[0]
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        types = id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, types)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*above, node.module] if node.level else [node.module]
            for alias in node.names:
                yield Import(".".join([*filter(None, base), alias.name]), node.lineno, types)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden_to(module: str) -> tuple[str, ...]:
    """What a module may not import."""
    if within(module, "envs"):
        return ("ray", "torch", "rl_cluster")
    if within(module, RAY_LAYER):
        return ("envs",)
    forbidden = ["ray", "envs"]
    if module not in ON_TOP:
        forbidden.append(RAY_LAYER)
    for own in PURE:
        if within(module, own):
            forbidden += [other for other in PURE if other != own] + [*WORKING_PARTS]
    if within(module, "rl_cluster.replay") or within(module, "rl_cluster.supervision"):
        forbidden.append("torch")
    return tuple(forbidden)


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    return [
        f"{module}:{found.line} imports {found.target}"
        for found in imports_of(source, module, is_package)
        for rule in forbidden_to(module)
        if within(found.target, rule) and not (found.for_types_only and rule == "envs")
    ]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    assert broken_rules(path.read_text(), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("envs.atari", "import torch.nn"),
        ("envs.atari", "from rl_cluster import config"),
        ("rl_cluster.learner", "def f():\n    import ray"),
        ("rl_cluster.learner", "from .cluster import wiring"),
        ("rl_cluster.learner", "from . import cluster"),
        ("rl_cluster.replay.index", "import torch"),
        ("rl_cluster.replay.index", "from ..agents import losses"),
        ("rl_cluster.agents.dqn", "from rl_cluster import learner"),
        ("rl_cluster.supervision.plan", "from typing import TYPE_CHECKING\n"
         "if TYPE_CHECKING:\n    from rl_cluster.replay.block import Block"),
        ("rl_cluster.rollout", "from envs.base import Steps"),
    ],
)  # fmt: skip
def test_the_rules_catch_what_they_forbid(module: str, source: str) -> None:
    assert len(broken_rules(source, module)) == 1


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_module_of_envs_is_named_but_in_an_entry(path: Path) -> None:
    """`envs.atari:make` is an entry; `envs.atari` could only serve to go past the entries."""
    names = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    if not within(module_name(path), "envs"):
        assert [name for name in names if re.fullmatch(r"envs(\.\w+)*", name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    lines = {
        f"{node.name}, line {node.lineno}": lines_without_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES} == {}


def lines_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if docstring is None or docstring.end_lineno is None:
        return lines
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def declared_dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {canonicalize_name(Requirement(text).name) for group in groups for text in group}


def test_every_dependency_has_one_line_that_says_why() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    explained = re.findall(r"^\| `([^`]+)` \| \S.* \|$", page, flags=re.MULTILINE)
    assert sorted(explained) == sorted(declared_dependencies())


def test_every_package_that_the_code_imports_is_a_declared_dependency() -> None:
    distributions = packages_distributions()
    declared = declared_dependencies() | {"rl-cluster"}
    undeclared = {
        f"{module_name(path)}: {top}"
        for path in SOURCES
        for found in imports_of(path.read_text(), module_name(path), path.name == "__init__.py")
        if (top := found.target.partition(".")[0]) in distributions
        and not declared & {canonicalize_name(name) for name in distributions[top]}
    }
    assert undeclared == set()
