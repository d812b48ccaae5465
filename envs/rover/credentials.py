"""How a rover reaches its server: the address and the credentials on the command line.

Invariant: secrets are named by the files that hold them; none is an argument or logged.
"""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `connection_of` reads."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", required=True, help="nats://HOST:PORT or tls://HOST:PORT")
    group.add_argument("--user", help="with --password-file")
    group.add_argument("--password-file", type=Path)
    group.add_argument("--token-file", type=Path)
    group.add_argument("--nkey-file", type=Path, help="holds an nkey seed")
    group.add_argument("--creds-file", type=Path, help="holds a JWT and its seed")
    group.add_argument("--tls-ca", type=Path, help="whom to trust, instead of the system's list")
    group.add_argument("--tls-cert", type=Path, help="the rover's own, with --tls-key")
    group.add_argument("--tls-key", type=Path)


def connection_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `nats.connect`.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for options that need each other.
    """
    _require_pair(arguments, "user", "password_file")
    _require_pair(arguments, "tls_cert", "tls_key")
    connection: dict[str, Any] = {"servers": arguments.url}
    if arguments.user:
        connection |= {"user": arguments.user, "password": _secret(arguments.password_file)}
    if arguments.token_file:
        connection["token"] = _secret(arguments.token_file)
    if arguments.nkey_file:
        connection["nkeys_seed_str"] = _secret(arguments.nkey_file)
    if arguments.creds_file:
        _secret(arguments.creds_file)  # The client reads it anew at each connection.
        connection["user_credentials"] = str(arguments.creds_file)
    if arguments.tls_ca or arguments.tls_cert:
        connection["tls"] = _tls(arguments)
    return connection


def _require_pair(arguments: argparse.Namespace, *names: str) -> None:
    given = [name for name in names if getattr(arguments, name)]
    if len(given) == 1:
        first, second = (f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{first} and {second} need each other")


def _secret(path: Path) -> str:
    secret = path.read_text().strip()
    if not secret:
        raise ValueError(f"{path} is empty")
    return secret


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=arguments.tls_ca)
    if arguments.tls_cert:
        context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    return context
