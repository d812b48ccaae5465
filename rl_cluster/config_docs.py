"""The page docs/configuration.md: every setting, read from the configuration's own source.

Invariant: the page says nothing that `rl_cluster/config.py` does not say: names, ranges and
defaults come from the dataclasses, meanings from the docstrings below their fields.
`python -m rl_cluster.config_docs > docs/configuration.md` writes it; a test holds the two equal.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from rl_cluster.config import RunConfig

_INTRODUCTION = (
    "# Configuration",
    "",
    "Generated from `rl_cluster/config.py` by "
    "`python -m rl_cluster.config_docs > docs/configuration.md`; a test holds the two equal.",
    "",
    "A configuration is a YAML file. `tasks` names what is learned, as a list of names or as a "
    "mapping from each name to the settings in which that task differs; `defaults` holds settings "
    "that every task starts from. Whatever is left out has the default below. An unknown name is "
    "an error that names the nearest known one.",
    "",
    "```yaml",
    "max_seconds: 3600",
    "tasks:",
    "  Pong: {}",
    "  Breakout: {learner: {batch: 64}}",
    "defaults:",
    "  replay: {capacity_transitions: 200_000}",
    "```",
    "",
    "On the command line `--set` overrides a file: `--set max_seconds=60`, "
    "`--set defaults.learner.batch=64`, `--set tasks.Pong.rollout.actors=2`; values are YAML. "
    "`rl-cluster doctor CONFIG` shows what this machine makes of a configuration.",
)


class Group(NamedTuple):
    """Settings that stand together."""

    path: str
    """Where they stand, such as `tasks.TASK.learner`; empty for the top level."""
    kind: type
    """Their dataclass."""


def groups(kind: type = RunConfig, path: str = "") -> Iterator[Group]:
    """Every group of settings from `kind` down, in the order of their fields."""
    yield Group(path, kind)
    for name, hint in get_type_hints(kind).items():
        inside = f"{path}.{name}".lstrip(".")
        if get_origin(hint) is dict:
            hint, inside = get_args(hint)[1], f"{inside}.{'TASK' if name == 'tasks' else 'NAME'}"
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from groups(hint, inside)


def field_docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass; a field without one is missing."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def render_markdown() -> str:
    """Return the text of docs/configuration.md."""
    return "\n".join([*_INTRODUCTION, *_sections(), ""])


def _sections() -> Iterator[str]:
    for group in groups():
        settings = list(_rows(group.kind))
        if not settings:
            continue
        title = f"`{group.path}`" if group.path else "The run"
        yield from ("", f"## {title}", "", inspect.getdoc(group.kind) or "", "")
        yield from ("| setting | value | default | meaning |", "|---|---|---|---|")
        yield from settings


def _rows(kind: type) -> Iterator[str]:
    meanings, hints = field_docstrings(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        cells = (
            f"`{field.name}`",
            value_text(hints[field.name]),
            _default_text(field),
            meanings[field.name],
        )
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def value_text(hint: Any) -> str:
    """What may stand there, in words, such as `integer ≥ 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{value_text(arguments[0])} {' and '.join(_bounds(arguments[1:]))}".strip()
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(map(value_text, arguments))
    if origin is tuple:
        return f"list of ({value_text(arguments[0])})"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
    return "mapping" if origin is dict else names[hint]


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for constraint in (inner for outer in metadata for inner in outer.metadata):
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤")):
            if hasattr(constraint, name):
                yield f"{sign} {getattr(constraint, name)}"


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(field.default)}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{json.dumps(field.default_factory(), default=dataclasses.asdict)}`"
    return "none: must be given"


if __name__ == "__main__":
    print(render_markdown(), end="")
