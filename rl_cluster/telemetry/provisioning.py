"""Prometheus and Grafana for a run: their configuration, and the commands that start them.

Invariant: everything listens on loopback, nothing needs a secret (Ray's token guards its own
services; figures are read on loopback without it), and addresses are read from a file that the run
replaces, so both programs may outlive any cluster that it has.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rl_cluster.telemetry.grafana import DATASOURCE, DIRECTORY
from rl_cluster.telemetry.prometheus import addresses_file

PROMETHEUS = "127.0.0.1:9090"
_GRAFANA = ("127.0.0.1", "3000")
_GRAFANA_HOME = "/usr/share/grafana"
"""Where Grafana's Debian package has it."""
_SCRAPE_S = 5


def provision(run_dir: Path, out: Path | None = None) -> list[str]:
    """Write the configuration of both programs.

    Args:
      run_dir: of a run, live or not.
      out: where to; None: RUN/dashboards. What stands there is replaced, and Prometheus keeps its
        figures there, too.

    Returns:
      The command lines that start Prometheus and Grafana.

    Raises:
      FileNotFoundError: the directory holds no run.
      OSError: it cannot be written.
    """
    if not (run_dir / "config.yaml").exists():
        raise FileNotFoundError(f"{run_dir} holds no run: name the directory that `train` made")
    directory = (out or run_dir / "dashboards").absolute()
    boards, provisioning = directory / "grafana" / "boards", directory / "grafana" / "provisioning"
    boards.mkdir(parents=True, exist_ok=True)
    for board in DIRECTORY.glob("*.json"):
        shutil.copy(board, boards)
    _write(directory / "prometheus.yml", _prometheus(run_dir.absolute()))
    _write(provisioning / "datasources" / "rl-cluster.yaml", _datasources())
    _write(provisioning / "dashboards" / "rl-cluster.yaml", _providers(boards))
    return _commands(directory, provisioning)


def _prometheus(run_dir: Path) -> dict[str, Any]:
    """Whom Prometheus asks, and how often."""
    return {
        "global": {"scrape_interval": f"{_SCRAPE_S}s", "scrape_timeout": f"{_SCRAPE_S}s"},
        "scrape_configs": [
            {
                "job_name": "rl-cluster",
                "file_sd_configs": [{"files": [str(addresses_file(run_dir))]}],
            }
        ],
    }


def _datasources() -> dict[str, Any]:
    source = {
        "name": "rl-cluster",
        "uid": DATASOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://{PROMETHEUS}",
        "jsonData": {"timeInterval": f"{_SCRAPE_S}s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _providers(boards: Path) -> dict[str, Any]:
    provider = {
        "name": "rl-cluster",
        "folder": "rl-cluster",
        "type": "file",
        "options": {"path": str(boards)},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _commands(directory: Path, provisioning: Path) -> list[str]:
    host, port = _GRAFANA
    prometheus = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'prometheus'}",
        f"--web.listen-address={PROMETHEUS}",
    ]
    grafana = [
        "env",
        f"GF_PATHS_PROVISIONING={provisioning}",
        f"GF_PATHS_DATA={directory / 'grafana' / 'data'}",
        f"GF_PATHS_LOGS={directory / 'grafana' / 'logs'}",
        f"GF_PATHS_PLUGINS={directory / 'grafana' / 'plugins'}",
        f"GF_SERVER_HTTP_ADDR={host}",
        f"GF_SERVER_HTTP_PORT={port}",
        # Not the `grafana` of the PATH: that one reads /etc/grafana, which only its service may.
        f"{_GRAFANA_HOME}/bin/grafana",
        "server",
        f"--homepath={_GRAFANA_HOME}",
    ]
    return [shlex.join(prometheus), shlex.join(grafana)]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
