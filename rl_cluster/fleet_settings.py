"""From a task's configuration to what the parts of its stream are made with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rl_cluster.config import ConfigError, TaskConfig
from rl_cluster.config_rovers import StreamConfig
from rl_cluster.control import Control
from rl_cluster.extras import how_to_install
from rl_cluster.streams.nats_settings import StreamSettings

_NEEDED = ("nats", "nkeys", "msgpack", "onnx", "onnxruntime")
_SHARED = (
    "user",
    "password",
    "token",
    "nkey_seed",
    "credentials",
    "tls_ca",
    "tls_certificate",
    "tls_key",
    "ack_wait_s",
    "max_in_flight",
)


def stream_settings(stream: StreamConfig, url: str) -> StreamSettings:
    """How the server at an address is spoken to."""
    return StreamSettings(url=url, **{name: getattr(stream, name) for name in _SHARED})


def check_usable(name: str, stream: StreamConfig) -> None:
    """Raise ConfigError where a package is missing or settings contradict each other."""
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"tasks.{name} reads rovers' streams, which needs {', '.join(missing)}: "
            + how_to_install("rovers")
        )
    from rl_cluster.streams.source import StreamError

    try:
        stream_settings(stream, stream.url or "nats://127.0.0.1:4222").check_valid()
    except StreamError as error:
        raise ConfigError(f"tasks.{name}: {error}") from error


def address_file(task: str) -> str:
    """Name of the control file that says where a task's own server is."""
    return f"server-{task}"


def stream_url(run_dir: Path, task: str, config: TaskConfig) -> str | None:
    """Where a task's server is; None while one of its own has yet to start."""
    if config.stream.url is not None:
        return config.stream.url
    known = Control(run_dir).read(address_file(task))
    return None if known is None else str(known["url"])
