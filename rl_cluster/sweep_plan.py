"""What a sweep is on disk: SWEEP/sweep.yaml, and one ordinary run directory for each seed.

Invariant: sweep.yaml is written once, before the first run, and never changed: a sweep that is
begun again is the same sweep, or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rl_cluster import config_file
from rl_cluster.config import ConfigError, RunConfig
from rl_cluster.disk import write_text_atomically

FILE_NAME = "sweep.yaml"
_KINDS = (("name", str, "text"), ("seeds", list, "a list"), ("config", dict, "a mapping"))


@dataclass(frozen=True)
class SweepPlan:
    """A configuration and the seeds that it is to be trained with."""

    directory: Path
    """Absolute."""
    name: str
    """The directory's when the sweep was first begun: part of its runs' names, wherever it is."""
    config: RunConfig
    """Whatever its seed."""
    seeds: tuple[int, ...]

    def run_dir(self, seed: int) -> Path:
        """The run directory of a seed."""
        return _run_dir(self.directory, self.name, seed)

    def seeded(self, seed: int) -> RunConfig:
        """The configuration of a seed's run."""
        return replace(self.config, seed=seed)

    def check_same(self) -> None:
        """Make sure that no other sweep is there.

        A setting that came with a later version counts as recorded with its default.

        Raises:
          ConfigError: one is, and the message says in what it differs; or its file is damaged.
        """
        if not is_sweep(self.directory):
            return
        wanted = config_file.flat(self._record())
        found = config_file.flat(_read_plan(self.directory)._record())
        differing = sorted(
            key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
        )
        if differing:
            key = differing[0]
            more = f", and {len(differing) - 1} more settings" if len(differing) > 1 else ""
            raise ConfigError(
                f"{self.directory} is another sweep: there {key} is {found.get(key)!r}, not "
                f"{wanted.get(key)!r}{more}: name another directory with --sweep"
            )

    def write(self) -> None:
        """Write sweep.yaml, unless it is there.

        Raises:
          OSError: the disk is full or gone.
        """
        if not is_sweep(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            text = str(yaml.safe_dump(self._record(), sort_keys=False))
            write_text_atomically(self.directory / FILE_NAME, text)

    def _record(self) -> dict[str, Any]:
        config = config_file.to_mapping(self.config)
        del config["seed"]
        record = {"name": self.name, "seeds": list(self.seeds), "config": config}
        # As YAML gives it back: lists for tuples.
        return dict(yaml.safe_load(yaml.safe_dump(record)))


def plan_sweep(
    directory: Path, configuration: Path, overrides: Sequence[str], seeds: Sequence[int]
) -> SweepPlan:
    """Read a configuration for a sweep.

    Raises:
      ConfigError: it cannot be, never ends, or the seeds cannot be.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise ConfigError("--set seed=… is what --seeds says: leave it out")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: one of them comes twice")
    for seed in seeds:
        config = config_file.load(configuration, [*overrides, f"seed={seed}"])
    if config.max_env_steps is None and config.max_seconds is None:
        raise ConfigError(
            f"{configuration} never ends, so that the second seed would never begin: give it "
            "max_env_steps (or max_seconds, which counts anew after an interruption)"
        )
    directory = directory.resolve()
    name = _read(directory)["name"] if is_sweep(directory) else directory.name
    return SweepPlan(directory, name, replace(config, seed=0), tuple(seeds))


def is_sweep(directory: Path) -> bool:
    """Whether a directory is a sweep's."""
    return (directory / FILE_NAME).exists()


def runs_of(sweep: Path) -> list[Path]:
    """The run directories of a sweep, begun or not, in the order of its seeds.

    Raises:
      ConfigError: its sweep.yaml is damaged.
    """
    record = _read(sweep)
    return [_run_dir(sweep, record["name"], seed) for seed in record["seeds"]]


def _run_dir(sweep: Path, name: str, seed: int) -> Path:
    # The last part is the run's name, which trackers, uploads and a shared cluster know it by.
    return sweep / f"{name}-seed-{seed}"


def _read_plan(sweep: Path) -> SweepPlan:
    record = _read(sweep)
    try:
        config = config_file.from_mapping(record["config"])
    except ConfigError as error:
        raise ConfigError(f"{sweep / FILE_NAME} cannot be read: {error}") from error
    return SweepPlan(sweep, record["name"], config, tuple(record["seeds"]))


def _read(sweep: Path) -> dict[str, Any]:
    path = sweep / FILE_NAME
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not content.keys() >= {"name", "seeds", "config"}:
        raise ConfigError(f"{path} is no sweep's: it lacks name, seeds or config")
    for key, kind, wanted in _KINDS:
        if not isinstance(content[key], kind):
            raise ConfigError(f"{path}: {key} is {content[key]!r}, not {wanted}")
    for seed in content["seeds"]:
        if type(seed) is not int:
            raise ConfigError(f"{path}: {seed!r} in seeds is no whole number")
    return content
