"""The cluster files that people start from: held against Ray's own schema and Ray's own reading."""

from __future__ import annotations

import re
import shlex
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
    stop, start = read(path)[f"{kind}_start_ray_commands"]
    assert stop.endswith("ray stop") and "RAY_AUTH_MODE=token" in start
    before, _, arguments = start.rpartition("ray start ")
    # What a shell would fill in.
    plain = re.sub(r"\$\([^)]*\)|\$RAY_HEAD_IP", "192.0.2.10", arguments)
    options = ray_start.make_context("ray start", shlex.split(plain)).params
    assert options["head"] is (kind == "head") and options["object_store_memory"] > 0
    assert "dashboard" not in arguments or options["dashboard_host"] == "127.0.0.1"
    assert "ulimit -n" in before


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.name))
def test_every_node_gets_token_and_package_and_is_checked(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    setup = "\n".join(config["setup_commands"])
    assert (
        "chmod 600 ~/.ray/auth_token" in setup and "-c ~/rl-cluster/dist/constraints.txt" in setup
    )
    assert config["setup_commands"][-1].endswith("rl-cluster doctor")


def test_kuberay_reads_the_groups_of_its_manifest() -> None:
    cluster = read(CLUSTERS / "raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    head, cpu = (config["available_node_types"][name] for name in ("headgroup", "cpu"))
    assert head["resources"]["GPU"] == 1 and head["max_workers"] == 0
    assert cpu["resources"]["CPU"] == 8 and (cpu["min_workers"], cpu["max_workers"]) == (1, 8)
    assert cpu["labels"] == {"pool": "cpu"}


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
