"""Configurations as YAML: read, checked, overridden, written.

Invariant: a configuration that loads is complete and valid. An unknown key, a wrong type or a value
out of range is a `ConfigError` that names the key, the value and, for a misspelt key, the nearest
known one. `defaults` in a file is a shorthand: every task starts from it; the tree itself holds
each task in full, so that `load(dump(config)) == config`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from rl_cluster.config import (
    ConfigError,
    LoadConfig,
    PressureConfig,
    RunConfig,
    TaskConfig,
    TierConfig,
)

_ADAPTER = TypeAdapter(RunConfig)
_TASK_ADAPTER = TypeAdapter(TaskConfig)


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    Raises:
      ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping with `tasks`, not {type(raw).__name__}")
    return from_mapping(raw, overrides)


def from_mapping(raw: Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Build a configuration from plain data, overrides applied before defaults are spread."""
    tree = _merged({}, raw)
    tree["tasks"] = _by_name(tree.get("tasks"))
    for override in overrides:
        _apply(tree, override)
    defaults = tree.pop("defaults", None) or {}
    tasks = _by_name(tree["tasks"])
    if not isinstance(tasks, dict) or not isinstance(defaults, dict):
        raise ConfigError("tasks is a list of names or a mapping; defaults is a mapping")
    tree["tasks"] = {name: _merged(defaults, task or {}) for name, task in tasks.items()}
    _keep_known_tiers(tree.get("load"))
    config = _validate(tree)
    config.check_valid()
    return config


def dump(config: RunConfig) -> str:
    """YAML text that `load` turns into an equal configuration."""
    return str(yaml.safe_dump(to_mapping(config), sort_keys=False))


def task_mapping(config: TaskConfig) -> dict[str, Any]:
    """Plain data of one task's settings, as JSON carries it."""
    return dict(_TASK_ADAPTER.dump_python(config, mode="json"))


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Plain data (mappings, lists, scalars) of the whole tree."""
    return dict(_ADAPTER.dump_python(config))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name to value of every setting of a tree, as `--set` names them."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[prefix + key] = value
    return settings


def _merged(base: Mapping[str, Any], over: Any) -> dict[str, Any]:
    if not isinstance(over, Mapping):
        raise ConfigError(f"expected a mapping of settings, found {over!r}")
    merged: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in over.items():
        nested = old if isinstance(old := merged.get(key), Mapping) else {}
        merged[key] = _merged(nested, value) if isinstance(value, Mapping) else value
    return merged


def _by_name(tasks: Any) -> Any:
    """A list of names as the mapping that it stands for."""
    if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks):
        return {task: {} for task in tasks}
    return tasks or {}


def _keep_known_tiers(load: Any) -> None:
    """A tier of one's own comes beside light, medium and heavy."""
    if isinstance(load, dict) and isinstance(load.get("tiers"), dict):
        known = {name: dataclasses.asdict(tier) for name, tier in LoadConfig().tiers.items()}
        load["tiers"] = _merged(known, load["tiers"])


def parse_setting(text: str) -> tuple[str, Any]:
    """Dotted name and value (as YAML) of `a.b=value`.

    Raises:
      ConfigError: it does not read so.
    """
    path, separator, value = text.partition("=")
    if not separator or not all(path.strip().split(".")):
        raise ConfigError(f"--set {text!r} must read a.b=value")
    try:
        return path.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not YAML: {error}") from error


def tree_of(settings: Iterable[str]) -> dict[str, Any]:
    """The mapping that settings like `a.b=value` spell out.

    Raises:
      ConfigError: one does not read so.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        _apply(tree, setting)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    path, value = parse_setting(override)
    keys = path.split(".")
    node = tree
    for key in keys[:-1]:
        child = node[key] = node.get(key) or {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a group of settings")
        node = child
    node[keys[-1]] = value


def _validate(tree: Mapping[str, Any]) -> RunConfig:
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors(include_url=False)))) from error


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    if detail["type"] == "unexpected_keyword_argument":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting {path!r}: {hint}"
    return f"{path} is {detail['input']!r}: {detail['msg']}"


def _fields_at(location: list[str]) -> list[str]:
    node: Any = RunConfig
    for part in location:
        fields = getattr(node, "__dataclass_fields__", {})
        node = TaskConfig if part not in fields else _FIELD_TYPES.get(part, node)
    names = [field.name for field in dataclasses.fields(node)]
    return [*names, "defaults"] if node is RunConfig else names


_FIELD_TYPES: dict[str, type | None] = {
    **{field.name: type(field.default) for field in dataclasses.fields(TaskConfig)},
    **{name: type(RunConfig.__dataclass_fields__[name].default)
       for name in ("supervisor", "load", "telemetry", "cluster")},
    "pressure": PressureConfig,
    "tiers": TierConfig,
    "tasks": None,
}  # fmt: skip
