"""What a machine offers a run, and what it lacks: `rl-cluster doctor`.

Invariant: looking changes nothing. What a check starts ends with it, neither Ray nor torch is
imported, and Ray's token is looked at where it lies but is never part of a result.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import pynvml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl_cluster.cgroups import memory_limit_bytes, usable_cores
from rl_cluster.gpus import visible_gpus
from rl_cluster.sensors import available_memory_bytes
from rl_cluster.telemetry.formatting import data_size

State = Literal["ok", "warn", "fail"]

DISTRIBUTION = "rl-cluster"
DASHBOARD_PORT = 8265
GAME_TIMEOUT_S = 60.0
GB = 10**9

_STYLES: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_PLAY_A_GAME = """
import envpool, numpy
env = envpool.make_gymnasium("Pong-v5", num_envs=1, num_threads=1)
env.reset()
for _ in range(20):
    env.step(numpy.zeros(1, numpy.int32))
"""


class Finding(NamedTuple):
    """What a look at one thing showed."""

    state: State
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


class Check(NamedTuple):
    """A finding under the name of the thing looked at."""

    name: str
    state: State
    found: str
    advice: str


class Setting(NamedTuple):
    """One row of what would run: what is asked for, and what this machine makes of it."""

    name: str
    requested: str
    effective: str
    reason: str
    """Why the two differ; empty where they do not."""


def diagnose(runs: Path = Path("runs")) -> list[Check]:
    """Look at everything that a run needs, in about a second.

    Args:
      runs: directory in which run directories would be made; it need not exist.
    """
    python_wanted, requirements = _declared()
    findings = {
        "Python": python_version(python_wanted),
        "packages": packages(requirements),
        "optional packages": optional_packages(requirements),
        "cores": cores(),
        "memory": memory(),
        "shared memory": shared_memory(),
        "disk": disk(runs),
        "GPU": gpu(),
        "loopback": loopback(),
        "dashboard port": dashboard_port(),
        "Ray token": ray_token(os.environ, Path.home()),
        "EnvPool": game(),
        "open files": open_files(),
        "clock": clock(),
    }
    return [Check(name, *finding) for name, finding in findings.items()]


def exit_code(checks: Iterable[Check]) -> int:
    """Return 1 where a check failed, else 0; warnings do not count."""
    return int(any(check.state == "fail" for check in checks))


def report(checks: Sequence[Check], would_run: Sequence[Setting] = (), *, as_json: bool) -> int:
    """Print the checks, and what would run if a configuration was given; return the exit code."""
    if as_json:
        print(json.dumps(as_object(checks, would_run)))
    else:
        render(Console(), checks, would_run)
    return exit_code(checks)


def as_object(checks: Sequence[Check], would_run: Sequence[Setting] = ()) -> dict[str, Any]:
    """Return what `doctor --json` prints: `state` (the worst one), `checks`, `would_run`."""
    states = {check.state for check in checks}
    return {
        "state": next((state for state in ("fail", "warn") if state in states), "ok"),
        "checks": [check._asdict() for check in checks],
        "would_run": [setting._asdict() for setting in would_run],
    }


def render(console: Console, checks: Sequence[Check], would_run: Sequence[Setting] = ()) -> None:
    """Print the same as tables."""
    table = Table("check", "", "found", "what to do", title="This machine", title_justify="left")
    for name, state, found, advice in checks:
        table.add_row(name, f"[{_STYLES[state]}]{state}[/]", escape(found), escape(advice))
    console.print(table)
    if would_run:
        table = Table("setting", "requested", "effective", "reason", title="What would run")
        for setting in would_run:
            style = None if setting.requested == setting.effective else "yellow"
            table.add_row(*map(escape, setting), style=style)
        console.print(table)


def _declared() -> tuple[SpecifierSet, list[Requirement]]:
    """Return the Python and the packages that rl-cluster's own metadata asks for.

    Both are empty where it runs from its sources without being installed.
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return SpecifierSet(), []
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    return SpecifierSet(metadata["Requires-Python"]), requirements


def python_version(
    wanted: SpecifierSet, version: Sequence[int | str] = sys.version_info
) -> Finding:
    """Check the version of this Python; a candidate, as Ubuntu 22.04's, counts as its release."""
    found = f"{platform.python_version()} ({sys.executable})"
    if wanted.contains(".".join(map(str, version[:3]))):
        return Finding("ok", found)
    return Finding("fail", found, f"needs {wanted}: make install PYTHON=/path/to/python3.11")


def packages(requirements: Sequence[Requirement]) -> Finding:
    """Check installed versions against the requirements that hold without any extra."""
    if not requirements:
        return Finding("fail", f"{DISTRIBUTION} is not installed here", "run `make install`")
    needed = [one for one in requirements if _holds(one)]
    wrong = [problem for one in needed if (problem := _problem_with(one))]
    if wrong:
        return Finding("fail", "; ".join(wrong), "run `make install`")
    return Finding("ok", _versions(needed))


def optional_packages(requirements: Iterable[Requirement]) -> Finding:
    """Name what the extras bring; developers' tools apart."""
    optional = [one for one in requirements if not _holds(one) and not _holds(one, extra="dev")]
    missing = [one.name for one in optional if _installed_version(one.name) is None]
    if missing:
        return Finding("ok", f"without {', '.join(missing)}", "`make install` brings them")
    return Finding("ok", _versions(optional))


def _holds(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _problem_with(requirement: Requirement) -> str:
    version = _installed_version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, needs {requirement.specifier}"
    return ""


def _versions(requirements: Iterable[Requirement]) -> str:
    return ", ".join(f"{one.name} {_installed_version(one.name)}" for one in requirements)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> Finding:
    """Check how many cores this process may use."""
    usable = usable_cores()
    found = f"{usable:g} usable of {os.cpu_count()} in the machine"
    if usable < 2:
        return Finding("warn", found, "give it two: acting and learning run side by side")
    return Finding("ok", found)


def memory() -> Finding:
    """Check host memory and cgroup limits."""
    host, limit, free = psutil.virtual_memory(), memory_limit_bytes(), available_memory_bytes()
    cgroup = "no cgroup limit" if limit is None else f"cgroup limit {data_size(limit)}"
    found = f"{data_size(free)} available of {data_size(host.total)}, {cgroup}"
    if free < 2 * GB:
        return Finding("fail", found, "free some: Ray and one game need 2 GB")
    if free < 6 * GB:
        return Finding("warn", found, "several games at once need more; see replay's capacity")
    return Finding("ok", found)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Check the room for Ray's object store, where replay lives."""
    if not path.is_dir():
        return Finding("warn", f"no {path}", "mount a tmpfs there, else Ray's objects go to disk")
    usage = shutil.disk_usage(path)
    found = f"{data_size(usage.free)} free of {data_size(usage.total)} in {path}"
    if usage.free < 2 * GB:
        advice = "enlarge it (docker run --shm-size=8g), else Ray's objects go to disk"
        return Finding("warn", found, advice)
    return Finding("ok", found)


def disk(runs: Path) -> Finding:
    """Check room and permission where run directories are made."""
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{data_size(free)} free for {runs}"
    if not os.access(place, os.W_OK):
        return Finding("fail", f"{place} is not writable", "choose another with --run DIR")
    if free < 1 * GB:
        return Finding("fail", found, "free some, or choose another place with --run DIR")
    if free < 10 * GB:
        return Finding("warn", found, "weeks of replay journal and checkpoints need more")
    return Finding("ok", found)


def gpu() -> Finding:
    """Name the GPUs; a machine without any is fine."""
    try:
        found = ", ".join(_described(handle) for handle in visible_gpus())
    except pynvml.NVMLError_LibraryNotFound:
        return Finding("ok", "none")
    except pynvml.NVMLError as error:
        return Finding("warn", f"NVIDIA's library answers: {error}", "mend the driver")
    if found and (_installed_version("torch") or "").endswith("+cpu"):
        advice = "install torch's CUDA build, else the GPU stays idle"
        return Finding("warn", f"{found}; torch is a build without CUDA", advice)
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if asked is None else f" (CUDA_VISIBLE_DEVICES={asked!r})"
    return Finding("ok", f"{found or 'none'}{hidden}")


def _described(handle: Any) -> str:
    room = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return f"{name} ({data_size(room.free)} free of {data_size(room.total)})"


def loopback() -> Finding:
    """Check that processes of this machine reach each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            host, port = server.getsockname()
            socket.create_connection((host, port), timeout=5.0).close()
    except OSError as error:
        return Finding("fail", f"127.0.0.1: {error}", "allow it: Ray's processes talk over it")
    return Finding("ok", f"connected to {host}:{port}")


def dashboard_port(port: int = DASHBOARD_PORT) -> Finding:
    """Check that the port of Ray's dashboard is free."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        advice = "another Ray cluster may run here; a dashboard would take the next port"
        return Finding("warn", f"{port}: {error.strerror}", advice)
    return Finding("ok", f"{port} is free")


def ray_token(environ: Mapping[str, str], home: Path) -> Finding:
    """Check Ray's authentication as its loader reads it (Ray 2.60).

    The first that is there counts: `RAY_AUTH_TOKEN`, the file of `RAY_AUTH_TOKEN_PATH`,
    `~/.ray/auth_token`. Without `RAY_AUTH_MODE` a local cluster uses a token, and makes one where
    there is none; a value that Ray does not know switches it off without a word.
    """
    mode = environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "disabled":
        advice = "unset it: whoever reaches Ray's ports can run code as you"
        return Finding("warn", "switched off by RAY_AUTH_MODE", advice)
    if mode != "token":
        found = f"RAY_AUTH_MODE={mode!r}, which Ray reads as disabled"
        return Finding("fail", found, "set it to token, or unset it")
    if token := environ.get("RAY_AUTH_TOKEN"):
        if token.isspace():
            return Finding("fail", "RAY_AUTH_TOKEN holds only blanks", "unset it")
        return Finding("ok", "from the variable RAY_AUTH_TOKEN")
    if named := environ.get("RAY_AUTH_TOKEN_PATH"):
        return _token_file(Path(named)) or Finding(
            "fail", f"RAY_AUTH_TOKEN_PATH: {named} is missing or empty", "name a file with a token"
        )
    default = home / ".ray" / "auth_token"
    return _token_file(default) or Finding(
        "ok", f"none yet; a local cluster makes {default} when it starts"
    )


def _token_file(path: Path) -> Finding | None:
    """Check who may read a token's file; None where it holds no token that we can read."""
    try:
        if not path.read_text().strip():
            return None
    except OSError:
        return None
    permissions = path.stat().st_mode & 0o777
    found = f"{path}, mode {permissions:o}"
    if permissions & 0o077:
        return Finding("warn", f"{found}: others may read it", f"chmod 600 {path}")
    return Finding("ok", found)


def game() -> Finding:
    """Play some steps of Pong in a process of its own: a binary that does not fit kills it."""
    command = [sys.executable, "-c", _PLAY_A_GAME]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GAME_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        found = f"20 steps of Pong took more than {GAME_TIMEOUT_S:g} s"
        return Finding("fail", found, "free the cores and look again")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return Finding("fail", last, "run `make install`, or use the backend ale")
    return Finding("ok", "20 steps of Pong")


def open_files() -> Finding:
    """Check the limit of open files: each of Ray's processes holds some hundred sockets."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", "no limit")
    if limit < 4096:
        return Finding("warn", f"limit {limit}, at most {most}", "ulimit -n 65536, then start Ray")
    return Finding("ok", f"limit {limit}")


def clock() -> Finding:
    """Check that the clock is not behind this very file, as after a boot without a battery."""
    now, installed = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed:
        return Finding("warn", f"{found}, before this program's installation", "set the clock")
    return Finding("ok", found)
