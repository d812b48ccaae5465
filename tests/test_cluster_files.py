"""The cluster files that people start from: held against Ray's own schema and Ray's own reading.

Those of Kubernetes are read by Ray's code and by bash; nothing here has KubeRay's schema.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from rl_cluster.cli_parser import make_parser
from rl_cluster.config_file import load

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


@pytest.mark.parametrize(("failures", "code"), [(0, 0), (2, 0), (3, 1)])
def test_a_worker_whose_start_fails_is_tried_three_times(
    tmp_path: Path, failures: int, code: int
) -> None:
    """Ray's autoscaler tries once and never again."""
    (command,) = read(ROOT / "ray_cluster.yaml")["worker_start_ray_commands"]
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


def test_kuberay_reads_the_groups_of_its_manifest() -> None:
    cluster = read(CLUSTERS / "raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    head, cpu = (config["available_node_types"][name] for name in ("headgroup", "cpu"))
    assert head["resources"]["GPU"] == 1 and head["max_workers"] == 0
    assert cpu["resources"]["CPU"] == 8 and (cpu["min_workers"], cpu["max_workers"]) == (1, 8)
    assert cpu["labels"] == {"pool": "cpu"}


def words_of_ray_start(head: bool, parameters: dict[str, str]) -> list[str]:
    """What `ray start` is given in a pod: KubeRay writes values into a command as they are."""
    options = "".join(f" --{name}={value} " for name, value in sorted(parameters.items()))
    command = f"ulimit -n $(ulimit -n); ray start {'--head' if head else ''} {options}"
    shown = subprocess.run(
        ["bash", "-c", f'ray() {{ printf "%s\\0" "$@"; }}; {command}'],
        capture_output=True, check=True, text=True, timeout=30,
    )  # fmt: skip
    assert shown.stderr == ""
    start, *words = shown.stdout.split("\0")[:-1]
    assert start == "start"
    return words


def test_bash_hands_ray_the_parameters_of_pods_as_they_were_meant() -> None:
    spec = read(CLUSTERS / "raycluster.yaml")["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        head, parameters = group is groups[0], group["rayStartParams"]
        words = words_of_ray_start(head, parameters)
        assert len(words) == len(parameters) + head
        options = ray_start.make_context("ray start", [*words]).params
        assert options["object_store_memory"] == int(parameters["object-store-memory"])
        if head:
            (config,) = [word for word in words if word.startswith("--system-config=")]
            assert options["system_config"] == json.loads(config.partition("=")[2])
            assert options["system_config"]["automatic_object_spilling_enabled"] is False


def test_braces_without_quotes_of_their_own_would_be_found() -> None:
    words = words_of_ray_start(True, {"system-config": '{"worker_niceness":0,"other":0}'})
    assert len(words) > 2


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


def test_a_job_on_kubernetes_is_a_command_that_the_program_takes() -> None:
    job = read(CLUSTERS / "rayjob.yaml")
    cluster = read(CLUSTERS / "raycluster.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "rl-cluster"
    taken = make_parser().parse_args(arguments)
    config = load(ROOT / "experiments" / taken.config.name, taken.overrides)
    assert config.cluster.address == "auto" and config.cluster.rollout_labels == {"pool": "cpu"}


def test_versions_agree_everywhere() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"ray=={RAY}" in constraints
    assert f"rayproject/ray:{RAY}-py311" in (CLUSTERS / "Dockerfile").read_text()
    assert read(CLUSTERS / "raycluster.yaml")["spec"]["rayVersion"] == RAY
