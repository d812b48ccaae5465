"""docs/cluster.md as a new user follows it: two hosts, `ray up`, a job, a dead host, `ray down`.

The commands are the page's own, read from it; only addresses, user, key and sizes are put in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import PATH, Host, Network, missing, network
from live_run import ROOT
from page_output import Step, check_shown, steps

LACKS = [*missing(), *(["curl"] if shutil.which("curl") is None else [])]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(LACKS), reason=f"hosts and their user need {', '.join(LACKS)}"),
]
PAGE = ROOT / "docs" / "cluster.md"
BIN = Path(sys.executable).parent
RUN = "runs/two-games"
_UP_S, _TRAINS_S, _BACK_S, _GONE_S, _RETURNED_S = 240.0, 300.0, 240.0, 120.0, 240.0


class User:
    """Somebody with a checkout, on a machine beside the hosts."""

    def __init__(self, net: Network, head: Host, worker: Host) -> None:
        self.head, self.worker = head, worker
        self.checkout, self._home = net.path / "checkout", net.path / "user"
        self._port = free_port()
        self._home.mkdir()
        self.checkout.mkdir()
        for name in ("dist", "experiments"):
            (self.checkout / name).symlink_to(ROOT / name)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(self._home),
            "PATH": f"{BIN}:{PATH}",
        }
        text = (ROOT / "ray_cluster.yaml").read_text()
        for old, new in (
            ("192.0.2.10", head.address),
            ("192.0.2.11", worker.address),
            ("ssh_user: ubuntu", "ssh_user: root"),
            ("~/.ssh/rl-cluster", str(net.key)),
            ("=4000000000", "=600000000"),
            ("=500000000", "=150000000"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        (self.checkout / "ray_cluster.yaml").write_text(text)

    def types(self, command: str) -> str:
        """Run a command of the page, and return what it printed."""
        done = self._popen(command)
        said, _ = done.communicate(timeout=_UP_S)
        assert done.returncode == 0, f"{command}\n{said}"
        return said

    def types_until_it_works(self, command: str) -> str:
        """A job server that is there does not take jobs yet."""
        said = []
        retry(lambda: said.append(self.types(command)))
        return said[0]

    def follows(self, step: Step) -> None:
        """Type what a step has, and see what it shows."""
        check_shown(step.shown, "".join(self.types(command) for command in step.commands))

    def exports(self, command: str) -> None:
        """Set a variable for all commands that follow."""
        name, _, value = command.removeprefix("export ").strip().partition("=")
        self._environment[name] = value

    def leaves_running(self, command: str) -> subprocess.Popen[str]:
        """Run a command beside the others."""
        return self._popen(command)

    def _popen(self, command: str) -> subprocess.Popen[str]:
        # Somebody's dashboard may be on the usual port here.
        command = command.replace("localhost:8265", f"localhost:{self._port}")
        command = command.replace("ray dashboard", f"ray dashboard --port {self._port}")
        return subprocess.Popen(
            ["bash", "-c", command], cwd=self.checkout, env=self._environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def summary(self) -> dict[str, Any] | None:
        """The run's figures, as its head has them."""
        said = self.head.run(f"cat ~/{RUN}/summary.json", check=False)
        return json.loads(said.stdout) if said.returncode == 0 else None

    def incidents(self) -> list[dict[str, Any]]:
        """What happened to the run."""
        said = self.head.run(f"cat ~/{RUN}/incidents.jsonl", check=False).stdout
        return [json.loads(line) for line in said.splitlines()]

    def autoscaler_said(self) -> str:
        """What Ray's autoscaler on the head, and who joins on the worker, wrote last."""
        monitor = "tail -n 80 /tmp/ray/session_latest/logs/monitor.*"
        of_head = self.head.run(monitor, check=False).stdout
        return f"{of_head}\n{self.worker.run('cat ~/rl-cluster/join.log', check=False).stdout}"

    def until(self, look: Callable[[dict[str, Any]], bool], timeout_s: float, what: str) -> float:
        """Wait for something in the run's summary; return how long it took, s."""
        start_s = time.monotonic()
        while (summary := self.summary()) is None or not look(summary):
            waited_s = time.monotonic() - start_s
            assert waited_s < timeout_s, (
                f"not within {timeout_s:g} s: {what}\n{summary}\n{self.autoscaler_said()}"
            )
            time.sleep(0.5)
        return time.monotonic() - start_s


def steps_of_the_page() -> dict[str, list[Step]]:
    """What the page has its reader type, by the heading that it stands under."""
    sections = PAGE.read_text().split("\n## ")[1:]
    return {section.partition("\n")[0]: steps(section) for section in sections}


def prepare_python(host: Host) -> None:
    """What a machine image has: an environment in which all but the package itself is installed."""
    venv = host.home / "rl-cluster" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    shared = BIN.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (next(venv.glob("lib/python3.*/site-packages")) / "shared.pth").write_text(f"{shared}\n")
    (venv / "bin" / "ray").write_text(
        f"#!{venv}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n"
    )
    (venv / "bin" / "ray").chmod(0o755)


@pytest.fixture
def user() -> Iterator[User]:
    """Somebody with two hosts that have never seen Ray."""
    with network() as net:
        head, worker = net.add_host(), net.add_host()
        for host in (head, worker):
            prepare_python(host)
        yield User(net, head, worker)


def trains_on(nodes: int) -> Callable[[dict[str, Any]], bool]:
    """Whether both games learn, with rollouts on so many nodes: each on two, or one on each."""

    def look(summary: dict[str, Any]) -> bool:
        tasks = summary["tasks"].values()
        used = [task.get("network", {"nodes": 1})["nodes"] for task in tasks]
        return max(used) == nodes and all(task["learner_updates"] > 50 for task in tasks)

    return look


def goes_on(before: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether both games collected and learned further."""
    return lambda summary: all(
        task[name] > before["tasks"][game][name] + 100
        for game, task in summary["tasks"].items()
        for name in ("env_steps", "learner_updates")
    )


@pytest.mark.timeout(1200)
def test_a_run_on_two_hosts_outlives_one_of_them(user: User) -> None:
    page = steps_of_the_page()
    (before,) = page["Before the first time"]
    wheel, mode, token, hide = before.commands
    subprocess.run(["make", wheel.removeprefix("make ")], cwd=ROOT, check=True)
    user.exports(mode)
    check_shown(before.shown, user.types(token))
    user.types(hide)
    started, seen = page["Up, and a run on it"]
    up, dashboard, tunnel, submit = started.commands
    said = user.types(up)
    forwarded = user.leaves_running(dashboard.removesuffix("&"))
    try:
        said += user.types(tunnel)
        check_shown(started.shown, said + user.types_until_it_works(submit))
        user.until(trains_on(2), _TRAINS_S, "both games, on both hosts")
        # The log gets a line of each game only every ten seconds.
        retry(lambda: user.follows(seen))
        on_the_cluster(user, page, up)
    finally:
        os.killpg(forwarded.pid, signal.SIGKILL)
        forwarded.communicate()


def on_the_cluster(user: User, page: dict[str, list[Step]], up: str) -> None:
    """From a run that trains on both hosts to the end of the cluster."""
    look, tiers = page["Seen and steered from outside"]
    user.follows(look)
    user.until(lambda s: s["tier"]["effective"] == "light", _BACK_S, "the light tier")
    user.follows(tiers)
    what_happened, end = page["When a machine dies"]
    a_host_dies(user)
    user.worker.start()
    back_s = user.until(trains_on(2), _RETURNED_S, "the host that came back has rollouts again")
    print(f"both hosts work again {back_s:.1f} s after one came back")
    user.follows(what_happened)
    (again,) = page["Stopped, and gone on with"]
    stop, resume = again.commands
    said = user.types(stop)
    before = user.summary()
    assert before is not None and before["state"] == "interrupted"
    check_shown(again.shown, said + user.types(resume))
    user.until(lambda s: s["state"] == "running" and goes_on(before)(s), _TRAINS_S, "a resumed run")
    the_head_dies_and_comes_back(user, up)
    user.follows(end)
    (down,) = page["Down"]
    user.follows(down)
    nothing_is_left(user)


def a_host_dies(user: User) -> None:
    """Training goes on on the head, and nothing collected is lost."""
    before = user.summary()
    assert before is not None
    user.worker.kill()
    lost_s = user.until(lambda s: trains_on(1)(s) and goes_on(before)(s), _BACK_S, "on one host")
    print(f"all works again {lost_s:.1f} s after a host's death")
    now = user.summary()
    assert now is not None
    for game, task in now["tasks"].items():
        assert task["replay"]["transitions"] >= before["tasks"][game]["replay"]["transitions"]
    failed = {each["worker"] for each in user.incidents() if each["kind"] == "worker_failed"}
    assert failed and all(str(name).startswith("rollout:") for name in failed), failed


def the_head_dies_and_comes_back(user: User, up: str) -> None:
    """What ran goes on by itself once there is a cluster again, on both hosts."""
    before = user.summary()
    assert before is not None
    user.head.kill()
    user.head.start()
    user.types(up)
    back_s = user.until(goes_on(before), _TRAINS_S, "the run after its head's return")
    print(f"all works again {back_s:.1f} s after `ray up`")
    user.until(trains_on(2), _TRAINS_S, "on both hosts")


def nothing_is_left(user: User) -> None:
    """No process of Ray's or of the run's on either host."""
    look = "pgrep -fa '[r]aylet|[g]cs_server|[r]l_cluster' || echo none"
    for host in (user.head, user.worker):
        retry(lambda host=host: check("none", host.run(look).stdout))  # type: ignore[misc]


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(wanted: str, said: str) -> None:
    """Fail with what was said."""
    assert wanted in said, said


def retry(what: Callable[[], object]) -> None:
    """Until it does not fail any more, or time is over."""
    deadline_s = time.monotonic() + _GONE_S
    while True:
        try:
            what()
            return
        except AssertionError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(2)
