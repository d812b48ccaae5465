"""The manifests for KubeRay: their fields, and what Ray, bash and the command line make of them.

KubeRay's own definitions are two megabytes; written down here are the fields that the manifests
use, of RayCluster and RayJob v1 in KubeRay 1.7, and of Kubernetes' pods.
"""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import validate_config
from ray.scripts.scripts import start as ray_start
from test_cluster_files import CLUSTERS, LAUNCHED, RAY, ROOT, read, variables

from rl_cluster.cli_parser import make_parser
from rl_cluster.config_file import load

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def record(*required: str, **fields: Schema) -> Schema:
    """An object of these fields and no others."""
    kind: Schema = {"type": "object", "additionalProperties": False}
    return {**kind, "properties": fields, "required": list(required)}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


CONTAINER = record(
    "name", "image",
    name=TEXT, image=TEXT,
    env=many(record("name", name=TEXT, value=TEXT)),
    ports=many(record("containerPort", containerPort=COUNT, name=TEXT)),
    resources=record(limits=TEXTS, requests=TEXTS),
    volumeMounts=many(record("name", "mountPath", name=TEXT, mountPath=TEXT)),
)  # fmt: skip
VOLUME = record(
    "name",
    name=TEXT,
    emptyDir=record(medium=one_of("", "Memory"), sizeLimit=TEXT),
    persistentVolumeClaim=record("claimName", claimName=TEXT),
)
TOLERATION = record(
    key=TEXT, value=TEXT, operator=one_of("Exists", "Equal"),
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)  # fmt: skip
POD = record(
    "spec",
    spec=record(
        "containers", containers=many(CONTAINER), volumes=many(VOLUME),
        tolerations=many(TOLERATION), securityContext=record(fsGroup=COUNT),
    ),
)  # fmt: skip
CLUSTER = record(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=record(mode=one_of("disabled", "token")),
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=record("template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=many(
        record(
            "groupName", "template",
            groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
            labels=TEXTS, rayStartParams=TEXTS, template=POD,
        )
    ),
)  # fmt: skip
JOB = record(
    entrypoint=TEXT,
    clusterSelector=TEXTS,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
)


def manifest(kind: str, spec: Schema) -> Draft202012Validator:
    """Of one resource of the group ray.io."""
    return Draft202012Validator(
        record(
            "apiVersion", "kind", "metadata", "spec",
            apiVersion=one_of("ray.io/v1"), kind=one_of(kind),
            metadata=record("name", name=TEXT), spec=spec,
        )
    )  # fmt: skip


FILES = {
    "raycluster.yaml": manifest("RayCluster", CLUSTER),
    "rayjob.yaml": manifest("RayJob", JOB),
}


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_has_kuberays_fields_and_no_others(name: str) -> None:
    FILES[name].validate(read(CLUSTERS / name))


@pytest.mark.parametrize(
    ("name", "place", "field"),
    [
        ("rayjob.yaml", ("spec",), "submisionMode"),
        ("raycluster.yaml", ("spec", "workerGroupSpecs", 0), "minReplica"),
        ("raycluster.yaml", ("spec", "headGroupSpec", "template", "spec"), "volume"),
    ],
)
def test_a_field_that_kuberay_does_not_know_would_be_found(
    name: str, place: tuple[str | int, ...], field: str
) -> None:
    changed = inner = copy.deepcopy(read(CLUSTERS / name))
    for key in place:
        inner = inner[key]
    inner[field] = "1"
    (error,) = FILES[name].iter_errors(changed)
    assert field in error.message and tuple(error.absolute_path) == place


def variables_of_pods(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_pods_are_set_like_the_nodes_that_are_tested() -> None:
    """But for the token, which is the operator's, and the control store, which they lack."""
    wanted = variables(read(LAUNCHED[0]), "head")
    for name in [n for n in wanted if n.startswith("RAY_gcs_storage")]:
        del wanted[name]
    for name in ("RAY_AUTH_MODE", "RAY_enable_autoscaler_v2", "AUTOSCALER_NODE_START_WAIT_S"):
        del wanted[name]
    spec = read(CLUSTERS / "raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert variables_of_pods(group) == wanted


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


def test_a_job_on_kubernetes_is_a_command_that_the_program_takes() -> None:
    job = read(CLUSTERS / "rayjob.yaml")
    cluster = read(CLUSTERS / "raycluster.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "rl-cluster"
    taken = make_parser().parse_args(arguments)
    config = load(ROOT / "experiments" / taken.config.name, taken.overrides)
    assert config.cluster.address == "auto" and config.cluster.rollout_labels == {"pool": "cpu"}


def test_the_image_has_the_version_that_the_manifest_says() -> None:
    assert read(CLUSTERS / "raycluster.yaml")["spec"]["rayVersion"] == RAY
