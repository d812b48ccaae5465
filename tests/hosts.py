"""Hosts made of namespaces on this machine, each with an SSH server of its own, on one network.

A host has its own core, network, processes, `/tmp`, `/dev/shm` and home, and shares the file system
otherwise. Invariant: whoever leaves the context leaves no process, no interface and no file.
It takes root, `unshare`, `ip` and an SSH server and `rsync`: `tests/setup_debian.sh` brings them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("taskset", "unshare", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
_ROOT = Path(__file__).resolve().parents[1]
"""May be below /tmp, which a host has of its own."""
_DEBIAN = Path(sys.executable).parents[1] / "debian"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin:{_DEBIAN}/usr/bin:{_DEBIAN}/usr/sbin:{_DEBIAN}/sbin"
_ENVIRONMENT = os.environ | {"PATH": PATH}
_SSHD = """\
Port 22
HostKey {path}/host_key
AuthorizedKeysFile {path}/key.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
SetEnv PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:{debian}/usr/bin
"""
_UP_S = 20.0


def _core(number: int) -> int:
    """That of a host: what runs on one does not hold another up, as where they are machines."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]


def missing() -> list[str]:
    """What this machine lacks for hosts."""
    lacks = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    return lacks if os.geteuid() == 0 else ["root", *lacks]


class Host:
    """One host; `start` it again after its death.

    Args:
      network: whose member it is.
      number: last byte of its address.
    """

    def __init__(self, network: Network, number: int) -> None:
        self._network, self._number = network, number
        self.address = f"{network.prefix}.{number}"
        self.home = network.path / f"home-{number}"
        self.home.mkdir()
        # A login shell of Debian's forgets the PATH that it was given.
        (self.home / ".bashrc").write_text(f"export PATH=$PATH:{_DEBIAN}/usr/bin\n")
        (network.path / f"passwd-{number}").write_text(_passwd(self.home))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot it; return when its SSH server listens."""
        net, number = self._network, self._number
        outside, inside = f"{net.name}-{number}", f"{net.name}-{number}i"
        # The same after a boot, or others would go on sending to the one before.
        hardware = f"02:00:00:00:00:{number:02x}"
        _run(*f"ip link add {outside} type veth peer name {inside} address {hardware}".split())
        _run("ip", "link", "set", outside, "master", net.name, "up")
        script = f"""
            set -e
            mount --make-rprivate /
            mount --bind {net.path}/passwd-{number} /etc/passwd
            mount --bind {_ROOT} {net.path}/root
            for folder in /tmp /dev/shm /run; do
                mount -t tmpfs -o mode=1777 host-{number} $folder
            done
            mkdir -p /run/sshd {_ROOT}
            mount --bind {net.path}/root {_ROOT}
            hostname {net.name}-{number}
            while ! ip link show {inside} >/dev/null 2>&1; do sleep 0.05; done
            ip link set lo up
            ip addr add {self.address}/24 dev {inside}
            ip link set {inside} up
            exec {shutil.which("sshd", path=PATH)} -D -e -f {net.path}/sshd_config
        """
        with (net.path / f"host-{number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(_core(number)), "unshare", "--net", "--pid", "--mount",
                 "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=_ENVIRONMENT,
            )  # fmt: skip
        deadline_s = time.monotonic() + _UP_S
        while os.readlink(f"/proc/{self._process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < deadline_s and self._process.poll() is None
            time.sleep(0.01)
        _run("ip", "link", "set", inside, "netns", str(self._process.pid))
        while self.run("true", check=False).returncode != 0:
            assert time.monotonic() < deadline_s, (net.path / f"host-{number}.log").read_text()
            time.sleep(0.1)

    def run(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there, by SSH, as its user would."""
        done = subprocess.run(
            ["ssh", *self._network.ssh_options, f"root@{self.address}", command],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def kill(self) -> None:
        """Kill every process of it at once, as a power cut does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None
            # The kernel takes it away with the namespace, some time later.
            subprocess.run(
                ["ip", "link", "del", f"{self._network.name}-{self._number}"],
                capture_output=True,
                env=_ENVIRONMENT,
            )


class Network:
    """A network with this machine as `.1`."""

    def __init__(self, path: Path, octet: int) -> None:
        self.path, self.name, self.prefix = path, f"rlc{octet}", f"10.77.{octet}"
        self.key = path / "key"
        (path / "root").mkdir()
        self.ssh_options = (
            "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=3", "-o", "BatchMode=yes",
        )  # fmt: skip
        self.hosts: list[Host] = []

    def add_host(self) -> Host:
        """Boot one more host."""
        host = Host(self, 11 + len(self.hosts))
        self.hosts.append(host)
        host.start()
        return host


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network for hosts; all of them die with it."""
    path = Path(tempfile.mkdtemp(prefix="rlc-", dir="/var/tmp"))
    net = Network(path, os.getpid() % 200 + 20)
    for key in (net.key, path / "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    (path / "sshd_config").write_text(_SSHD.format(path=path, debian=_DEBIAN))
    _run("ip", "link", "add", net.name, "type", "bridge")
    try:
        _run("ip", "addr", "add", f"{net.prefix}.1/24", "dev", net.name)
        _run("ip", "link", "set", net.name, "up")
        yield net
    finally:
        for host in net.hosts:
            host.kill()
        _run("ip", "link", "del", net.name)
        shutil.rmtree(path)


def _passwd(home: Path) -> str:
    lines = Path("/etc/passwd").read_text().splitlines()
    others = [line for line in lines if not line.startswith(("root:", "sshd:"))]
    server = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin"  # who it is before a login
    return "\n".join([f"root:x:0:0:root:{home}:/bin/bash", server, *others, ""])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT)
    assert done.returncode == 0, f"{command}: {done.stderr}"
