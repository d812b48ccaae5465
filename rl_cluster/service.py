"""A run as a service of its host: started at boot, resumed, watched by systemd where there is one.

Invariant: nothing here keeps a run alive by itself; it only sees to it that a keeper is started.
systemd is told that the run lives only while its supervisor gets on (sd_notify(3), WATCHDOG=1).
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

from rl_cluster.run_directory import is_in_use

_log = logging.getLogger(__name__)
WATCHDOG_S = 120
IN_USE, RUN_FAILED = 2, 3
"""Exit codes of a keeper after which another at once is no use: the next boot tries again."""


class ServiceError(RuntimeError):
    """The service cannot be installed; the message says what to do."""


class Notifier:
    """Tells systemd how its service is; silent where systemd did not start this process."""

    def __init__(self) -> None:
        # Taken out of the environment: the processes of the run are no services of their own.
        self._address = os.environ.pop("NOTIFY_SOCKET", None)

    def ready(self) -> None:
        """The service is up."""
        self._send("READY=1")

    def alive(self) -> None:
        """The run gets on."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.connect(address)
                out.sendall(message.encode())
        except OSError as error:  # the next message may get through; training needs none
            _log.warning("systemd was not told %s: %s", message, error)


def unit_text(run_dir: Path, user: str) -> str:
    """A systemd unit that keeps the run in a directory (systemd.service(5))."""
    command = f"{sys.executable} -m rl_cluster.cluster.keeper {run_dir}"
    return f"""[Unit]
Description=rl-cluster run {run_dir}
After=network-online.target
ConditionPathExists={run_dir}/config.yaml

[Service]
Type=notify
NotifyAccess=main
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=10
# 0: the run is complete; 130: it was stopped, everything saved.
SuccessExitStatus=0 130
# Another process keeps it; it failed by itself.
RestartPreventExitStatus={IN_USE} {RUN_FAILED}
KillMode=mixed
TimeoutStopSec=60
TimeoutStartSec=180
WatchdogSec={WATCHDOG_S}

[Install]
WantedBy=multi-user.target
"""


def unit_name(run_dir: Path) -> str:
    """Name of a run's unit; runs in directories of the same name have units of their own."""
    path = run_dir.absolute()
    return f"rl-cluster-{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.service"


def install(run_dir: Path, user: str, root: Path = Path("/")) -> Path:
    """Write and enable the unit of a run, and start it unless the run is live already.

    Args:
      run_dir: the run's directory.
      user: who it runs as.
      root: where `etc` and `run` of the host are.

    Raises:
      ServiceError: there is no systemd here, the unit may not be written, or systemd refuses it.
    """
    run_dir = run_dir.absolute()
    if any(not (c.isalnum() or c in "/._-") for c in str(run_dir)):
        raise ServiceError(f"{run_dir}: a unit's paths may hold letters, digits and / . _ - only")
    if not (root / "run/systemd/system").is_dir():
        raise ServiceError(
            "systemd does not run on this host. The same without it, as a line of the crontab "
            f"(crontab -e):\n  @reboot {sys.executable} -m rl_cluster.cli keep {run_dir}"
        )
    path = root / "etc/systemd/system" / unit_name(run_dir)
    try:
        path.write_text(unit_text(run_dir, user), encoding="utf-8")
    except OSError as error:
        raise ServiceError(f"{path} cannot be written ({error.strerror}): use sudo") from error
    now = [] if is_in_use(run_dir) else ["--now"]
    for command in (["daemon-reload"], ["enable", *now, path.name]):
        done = subprocess.run(["systemctl", *command], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise ServiceError(f"systemctl {' '.join(command)} failed: {said}")
    return path
