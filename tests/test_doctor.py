"""The doctor reads machines rightly, agrees with Ray about its token, and keeps secrets."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console

from rl_cluster import doctor
from rl_cluster.cgroups import memory_limit_bytes, usable_cores
from rl_cluster.sensors import available_memory_bytes

SECRET = "f00dfacef00dface"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_that_runs_these_tests_passes(tmp_path: Path) -> None:
    checks = doctor.diagnose(tmp_path / "not" / "made" / "yet")
    assert not [check for check in checks if check.state == "fail"]
    assert doctor.exit_code(checks) == 0
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.advice for check in checks if check.state != "ok")
    assert not (tmp_path / "not").exists()


def test_neither_ray_nor_torch_is_imported() -> None:
    code = (
        "import sys; from rl_cluster import doctor; doctor.diagnose(); "
        "print(sorted({'ray', 'torch', 'envpool'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_failed_check_decides_the_exit_code_and_a_warning_does_not() -> None:
    fine = doctor.Check("a", "ok", "", "")
    warned = doctor.Check("b", "warn", "", "do")
    failed = doctor.Check("c", "fail", "", "do")
    assert doctor.exit_code([fine, warned]) == 0
    assert doctor.exit_code([failed, warned]) == 1
    assert doctor.as_object([fine])["state"] == "ok"
    assert doctor.as_object([fine, warned])["state"] == "warn"
    assert doctor.as_object([warned, failed])["state"] == "fail"


def test_json_is_one_object_and_holds_what_the_tables_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [doctor.Check("ports", "fail", "[8265] taken", "stop it")]
    rows = [doctor.Setting("device", "cuda", "cpu", "no GPU here")]
    assert doctor.report(checks, rows, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "state": "fail",
        "checks": [
            {"name": "ports", "state": "fail", "found": "[8265] taken", "advice": "stop it"}
        ],
        "would_run": [
            {"name": "device", "requested": "cuda", "effective": "cpu", "reason": "no GPU here"}
        ],
    }
    text = io.StringIO()
    doctor.render(Console(file=text, width=120), checks, rows)
    for word in ("ports", "[8265] taken", "stop it", "cuda", "cpu", "no GPU here"):
        assert word in text.getvalue()


def test_a_package_that_is_missing_or_too_old_is_named_with_both_versions() -> None:
    finding = doctor.packages([Requirement("numpy>=99"), Requirement("no-such-package-here")])
    assert finding.state == "fail"
    assert "numpy is 2." in finding.found
    assert "needs >=99" in finding.found
    assert "no-such-package-here is missing" in finding.found


def test_a_missing_extra_is_no_failure() -> None:
    wanted = [Requirement('no-such-package-here; extra == "wandb"')]
    assert doctor.packages(wanted).state == "ok"
    finding = doctor.optional_packages(wanted)
    assert finding.state == "ok"
    assert finding.found == "without no-such-package-here"


def test_a_candidate_of_a_release_is_as_good_as_pip_takes_it_to_be() -> None:
    candidate = (3, 11, 0, "candidate", 1)
    assert doctor.python_version(SpecifierSet(">=3.11"), candidate).state == "ok"


def test_an_unfit_python_and_a_missing_installation_fail() -> None:
    assert doctor.python_version(SpecifierSet(">=4")).state == "fail"
    assert doctor.python_version(SpecifierSet(">=3.11"), (3, 10, 9)).state == "fail"
    assert doctor.packages([]).state == "fail"


@pytest.mark.parametrize(
    ("files", "cores", "limit_bytes"),
    [
        pytest.param({}, None, None, id="no cgroups"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/memory.max": "3000000000",
                "sys/fs/cgroup/a/b/memory.max": "4000000000",
            },
            0.5,
            3_000_000_000,
            id="v2, the parent is tighter",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "max 100000",
                "sys/fs/cgroup/memory.max": "max",
            },
            None,
            None,
            id="v2, no limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpuacct,cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648",
            },
            0.25,
            2_147_483_648,
            id="v1, a container that is shown the host's path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
            id="v1, no limit",
        ),
    ],
)
def test_cgroup_limits_are_read(
    tmp_path: Path, files: dict[str, str], cores: float | None, limit_bytes: int | None
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text + "\n")
    affinity = float(len(os.sched_getaffinity(0)))
    assert usable_cores(tmp_path) == (affinity if cores is None else cores)
    assert memory_limit_bytes(tmp_path) == limit_bytes


@pytest.mark.parametrize(
    ("host_kib", "used_bytes", "available_bytes"),
    [(8_000_000, 14_000_000_000, 2_500_000_000), (1_000_000, 14_000_000_000, 1_024_000_000)],
    ids=["the container has less", "the host has less"],
)
def test_what_a_container_has_used_is_not_available(
    tmp_path: Path, host_kib: int, used_bytes: int, available_bytes: int
) -> None:
    group = "sys/fs/cgroup/memory"
    for name, text in {
        "proc/meminfo": f"MemTotal: 200000000 kB\nMemAvailable: {host_kib} kB",
        "proc/self/cgroup": "0::/",
        f"{group}.max": "16000000000",
        f"{group}.current": f"{used_bytes}",
        f"{group}.stat": "anon 13000000000\ninactive_file 500000000",
    }.items():
        write(tmp_path / name, text + "\n")
    assert available_memory_bytes(tmp_path) == available_bytes


def test_a_missing_or_unwritable_place_is_told(tmp_path: Path) -> None:
    assert doctor.shared_memory(tmp_path / "shm").state == "warn"
    assert doctor.disk(tmp_path / "runs").state in ("ok", "warn")
    assert doctor.disk(Path("/proc/runs")).state == "fail"


def test_a_taken_dashboard_port_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = doctor.dashboard_port(port)
        assert finding.state == "warn"
        assert str(port) in finding.found
    assert doctor.dashboard_port(port).state == "ok"


TOKENS = [
    ({}, None),
    ({}, SECRET),
    ({}, " \n"),
    ({"RAY_AUTH_TOKEN": SECRET}, None),
    ({"RAY_AUTH_TOKEN": ""}, SECRET),
    ({"RAY_AUTH_TOKEN": "  "}, None),
    ({"RAY_AUTH_TOKEN": "  "}, SECRET),
    ({"RAY_AUTH_TOKEN": SECRET, "RAY_AUTH_TOKEN_PATH": "/nowhere/at/all"}, None),
    ({"RAY_AUTH_TOKEN_PATH": "/nowhere/at/all"}, SECRET),
    ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, SECRET),
    ({"RAY_AUTH_TOKEN_PATH": ""}, SECRET),
]

ASK_RAY = """
import json, os, sys
from ray._raylet import AuthenticationTokenLoader as Loader
from ray.exceptions import AuthenticationError
names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
answers = []
for home, variables in json.load(sys.stdin):
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(variables, HOME=home)
    Loader.instance().reset_cache()
    try:
        answers.append(Loader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:
        answers.append(False)
print(json.dumps(answers))
"""


def test_ray_finds_a_token_exactly_where_the_doctor_does(tmp_path: Path) -> None:
    cases = []
    findings = []
    for number, (variables, text) in enumerate(TOKENS):
        home = tmp_path / str(number)
        home.mkdir()
        if text is not None:
            write(home / ".ray" / "auth_token", text)
        cases.append((str(home), variables))
        findings.append(doctor.ray_token(variables, home))
    ray = subprocess.run(
        [sys.executable, "-c", ASK_RAY],
        input=json.dumps(cases), capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [
        finding.state != "fail" and not finding.found.startswith("none") for finding in findings
    ]
    assert told == json.loads(ray.stdout)
    assert SECRET not in str(findings)


def test_a_token_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    write(token, SECRET)
    token.chmod(0o644)
    finding = doctor.ray_token({}, tmp_path)
    assert finding.state == "warn"
    assert finding.advice == f"chmod 600 {token}"
    token.chmod(0o600)
    assert doctor.ray_token({}, tmp_path).state == "ok"


def test_authentication_that_is_off_is_told() -> None:
    assert doctor.ray_token({"RAY_AUTH_MODE": "Disabled"}, Path("/nowhere")).state == "warn"
    assert doctor.ray_token({"RAY_AUTH_MODE": "tokne"}, Path("/nowhere")).state == "fail"
    assert doctor.ray_token({"RAY_AUTH_MODE": ""}, Path("/nowhere")).state == "fail"
