"""The files that `ray up` takes: held against Ray's own schema and Ray's own reading."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
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
    arguments = re.split(r";|&&", behind)[0]
    plain = re.sub(r"\$\([^)]*\)|\$RAY_HEAD_IP|\$NODE_IP", "192.0.2.10", arguments)
    options = ray_start.make_context("ray start", shlex.split(plain)).params
    assert options["head"] is (kind == "head") and options["object_store_memory"] > 0
    assert "dashboard" not in arguments or options["dashboard_host"] == "127.0.0.1"
    assert "ulimit -n" in before


def variables(config: dict[str, Any], kind: str) -> dict[str, str]:
    """What a node's commands export before Ray starts, RAY_HEAD_IP and the like left out."""
    (exported,) = [
        found
        for command in config[f"{kind}_start_ray_commands"]
        for found in re.findall(r"export (RAY_AUTH_MODE[^;]*);", command)
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
    for name in ("RAY_enable_autoscaler_v2", "AUTOSCALER_NODE_START_WAIT_S"):
        tested.pop(name, None)  # for the local provider alone
    assert variables(read(path), kind) == tested


def fake(directory: Path, program: str, script: str) -> None:
    """A program that comes before the real one of that name."""
    (directory / program).write_text(f"#!/bin/sh\n{script}\n")
    (directory / program).chmod(0o755)


def asked(home: Path) -> list[str]:
    path = home / "asked"
    return path.read_text().split() if path.exists() else []


def start_a_worker(path: Path, home: Path, failures: int, raylet_lives: bool = False) -> int:
    """Run the command of a worker where so many starts fail; return its exit code."""
    (home / "rl-cluster").mkdir(exist_ok=True)
    fake(home, "ray", f"""echo "$1" >> {home}/asked
        test $1 = stop || test $(grep -c start {home}/asked) -gt {failures}""")  # fmt: skip
    fake(home, "sleep", f"echo slept >> {home}/asked; exec /bin/sleep 0.1")
    fake(home, "pgrep", "true" if raylet_lives else "false")
    exports = variables(read(path), "worker")
    assert exports["RAY_AUTH_MODE"] == "token"
    command = "; ".join(read(path)["worker_start_ray_commands"])
    environment = os.environ | {"PATH": f"{home}:{os.environ['PATH']}", "HOME": str(home)}
    return subprocess.run(["bash", "-c", command], env=environment, timeout=30).returncode


@pytest.mark.parametrize("path", LAUNCHED[1:], ids=lambda path: str(path.name))
@pytest.mark.parametrize(("failures", "code"), [(0, 0), (2, 0), (3, 1)])
def test_a_cloud_s_worker_whose_start_fails_is_tried_three_times(
    tmp_path: Path, path: Path, failures: int, code: int
) -> None:
    """A cloud's autoscaler replaces one that fails."""
    assert start_a_worker(path, tmp_path, failures) == code
    assert asked(tmp_path) == ["stop", "start"] * min(failures + 1, 3)


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def is_joining(home: Path) -> bool:
    with (home / "rl-cluster" / "joining").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_worker_of_one_s_own_joins_after_any_failure_and_its_command_never_fails(
    tmp_path: Path,
) -> None:
    """Ray's first autoscaler gives a machine up for good whose command has failed once."""
    for _ in range(3):  # who is sent again while one is at it does nothing
        assert start_a_worker(LAUNCHED[0], tmp_path, failures=4) == 0
        until(lambda: "slept" in asked(tmp_path))
    until(lambda: not is_joining(tmp_path))
    assert asked(tmp_path) == [*(["stop", "start", "slept"] * 4), "stop", "start"]


def test_a_raylet_that_is_slow_is_not_stopped_because_ray_start_gave_up(tmp_path: Path) -> None:
    assert start_a_worker(LAUNCHED[0], tmp_path, failures=9, raylet_lives=True) == 0
    until(lambda: "slept" in asked(tmp_path))
    until(lambda: not is_joining(tmp_path))
    assert asked(tmp_path) == ["stop", "start", "slept"]


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
    assert with_all.endswith(f"{dist}/rl_cluster-0.9-py3.whl[tensorboard,wandb,rovers]")
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
