"""What is installed is whole: the wheel holds both packages and their data, at pinned versions."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rl_cluster", "envs")
TORCH_BUILD = re.compile(r"^(nvidia-|cuda-|triton$)")
"""What only some builds of torch bring; torch itself names the exact versions."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, since setuptools takes up what an earlier build left beside it."""
    source = tmp_path_factory.mktemp("source")
    shutil.copy(ROOT / "pyproject.toml", source)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", source / "out", source], check=True)
    (built,) = (source / "out").glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "rl_cluster/data/atari-scores.csv" in names


def test_the_wheel_brings_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert "rl-cluster = rl_cluster.cli:main" in archive.read(entry_points).decode()


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pinned}


def test_every_declared_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pinned = pins()
    for requirement in (Requirement(text) for group in groups for text in group):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_everything_that_is_brought_along_is_pinned_and_installed_so() -> None:
    """Without local build tags: `torch==2.13.0` is any build of it."""
    installed = {
        name: version
        for name, version in installed_closure().items()
        if not TORCH_BUILD.match(name)
    }
    pinned = pins()
    assert installed == {name: pinned.get(name) for name in installed}


def installed_closure() -> dict[str, Version]:
    """Public versions of all that rl-cluster with all its extras needs here, as installed."""
    found: dict[str, Version] = {}
    waiting = [("rl-cluster", frozenset({"tensorboard", "wandb", "rovers", "notebook", "dev"}))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        distribution = importlib.metadata.distribution(name)
        found[canonicalize_name(name)] = Version(Version(distribution.version).public)
        for requirement in map(Requirement, distribution.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *extras)):
                needed = (canonicalize_name(requirement.name), frozenset(requirement.extras))
                waiting += [needed] if needed not in seen else []
                seen.add(needed)
    del found["rl-cluster"]
    return found
