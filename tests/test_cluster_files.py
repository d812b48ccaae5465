"""The files that `ray up` takes: held against Ray's own schema and Ray's own reading."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

ROOT = Path(__file__).parents[1]
CLUSTERS = Path(str(files("rl_cluster"))) / "data" / "clusters"
LAUNCHED = (ROOT / "ray_cluster.yaml", CLUSTERS / "aws.yaml", CLUSTERS / "gcp.yaml")
RAY = "2.60.0"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_what_ray_up_takes_is_valid_by_rays_schema(path: Path) -> None:
    validate_config(prepare_config(read(path)))


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_an_unknown_key_would_be_found(path: Path) -> None:
    with pytest.raises(Exception, match="head_nod_type"):
        validate_config(prepare_config({**read(path), "head_nod_type": "head"}))


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_start_with_a_token_and_options_that_ray_knows(path: Path, kind: str) -> None:
    commands = "; ".join(read(path)[f"{kind}_start_ray_commands"])
    before, _, behind = commands.rpartition("ray start ")
    assert "ray stop;" in before and "RAY_AUTH_MODE=token" in before
    # What a shell would fill in.
    arguments = behind.partition(";")[0]
    plain = re.sub(r"\$\([^)]*\)|\$RAY_HEAD_IP", "192.0.2.10", arguments)
    options = ray_start.make_context("ray start", shlex.split(plain)).params
    assert options["head"] is (kind == "head") and options["object_store_memory"] > 0
    assert "dashboard" not in arguments or options["dashboard_host"] == "127.0.0.1"
    assert "ulimit -n" in before


def variables(config: dict[str, Any], kind: str) -> dict[str, str]:
    """What a node's commands export before Ray starts, RAY_HEAD_IP and the like left out."""
    (exported,) = [
        found
        for command in config[f"{kind}_start_ray_commands"]
        for found in re.findall(r"export ([^;]*);", command)
    ]
    return dict(word.split("=", 1) for word in exported.split())


def settings_that_ray_reads(environment: dict[str, str], names: list[str]) -> dict[str, int]:
    """What Ray makes of an environment; a name that it does not know changes nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys; from ray._raylet import Config;"
         "print(json.dumps({name: getattr(Config, name)() for name in sys.argv[1:]}))", *names],
        env=environment, capture_output=True, check=True, text=True, timeout=60,
    )  # fmt: skip
    read_back: dict[str, int] = json.loads(done.stdout)
    return read_back


def test_ray_gives_a_node_up_after_ten_seconds() -> None:
    """That is what it reads: initial delay, then five checks of a second, a second apart."""
    names = [f"health_check_{n}" for n in ("period_ms", "timeout_ms", "failure_threshold")]
    environment = variables(read(LAUNCHED[0]), "head")
    settings = settings_that_ray_reads(environment, names)
    period_ms, timeout_ms, failures = (settings[name] for name in names)
    assert (period_ms + timeout_ms) * failures == 10_000


@pytest.mark.parametrize("path", LAUNCHED[1:], ids=lambda path: str(path.name))
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_on_a_cloud_are_set_like_those_that_are_tested(path: Path, kind: str) -> None:
    """tests/test_run_hosts.py has the nodes of ray_cluster.yaml die and come back."""
    tested = variables(read(LAUNCHED[0]), kind)
    tested.pop("RAY_enable_autoscaler_v2", None)  # for the local provider alone
    assert variables(read(path), kind) == tested


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
@pytest.mark.parametrize(("failures", "code"), [(0, 0), (2, 0), (3, 1)])
def test_a_worker_whose_start_fails_is_tried_three_times(
    tmp_path: Path, path: Path, failures: int, code: int
) -> None:
    """Ray's autoscaler tries once and never again."""
    (command,) = read(path)["worker_start_ray_commands"]
    ray = tmp_path / "ray"
    ray.write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\n'
        f"test $1 = stop || test $(grep -c start {tmp_path}/asked) -gt {failures}\n"
    )
    ray.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], env=environment)
    tries = min(failures + 1, 3)
    assert done.returncode == code
    assert (tmp_path / "asked").read_text().split() == ["stop", "start"] * tries


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_every_node_gets_token_and_package_and_is_checked(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    setup = "\n".join(config["setup_commands"])
    assert (
        "chmod 600 ~/.ray/auth_token" in setup and "-c ~/rl-cluster/dist/constraints.txt" in setup
    )
    assert config["setup_commands"][-1].endswith("rl-cluster doctor")


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_changed_code_of_the_same_version_is_installed_from_the_newest_wheel(
    path: Path, tmp_path: Path
) -> None:
    """Pip takes a wheel of the version that is there for installed; Ray's rsync deletes none."""
    dist, said = tmp_path / "rl-cluster" / "dist", tmp_path / "said"
    dist.mkdir(parents=True)
    for age_s, name in enumerate(("rl_cluster-0.9-py3.whl", "rl_cluster-0.10-py3.whl")):
        (dist / name).touch()
        os.utime(dist / name, (1e9 - age_s, 1e9 - age_s))
    python = tmp_path / "rl-cluster" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    python.chmod(0o755)
    for command in (line for line in read(path)["setup_commands"] if "pip install" in line):
        subprocess.run(["bash", "-c", command], check=True, env={"HOME": str(tmp_path),
                       "PATH": os.environ["PATH"]}, timeout=30)  # fmt: skip
    with_all, anew = said.read_text().splitlines()
    assert with_all.endswith(f"{dist}/rl_cluster-0.9-py3.whl[tensorboard,rovers]")
    assert "--force-reinstall --no-deps" in anew and anew.endswith(f"{dist}/rl_cluster-0.9-py3.whl")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_what_ray_down_stops_on_a_cloud_keeps_its_disk(name: str) -> None:
    assert read(CLUSTERS / f"{name}.yaml")["provider"]["cache_stopped_nodes"] is True


def test_a_head_on_google_cloud_has_its_driver_installed() -> None:
    head = read(CLUSTERS / "gcp.yaml")["available_node_types"]["head"]["node_config"]
    assert {"key": "install-nvidia-driver", "value": "True"} in head["metadata"]["items"]


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_an_environment_that_was_left_without_pip_is_made_anew(path: Path, tmp_path: Path) -> None:
    (command,) = [line for line in read(path)["setup_commands"] if "-m venv" in line]
    broken = tmp_path / "rl-cluster" / ".venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    said = tmp_path / "said"
    stub = f"python3.11() {{ echo $* > {said}; }}; {command}"
    subprocess.run(["bash", "-c", stub], check=True, env={"HOME": str(tmp_path)}, timeout=30)
    assert said.read_text().split()[:3] == ["-m", "venv", "--clear"]


def test_versions_agree_everywhere() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"ray=={RAY}" in constraints
    assert f"rayproject/ray:{RAY}-py311" in (CLUSTERS / "Dockerfile").read_text()
