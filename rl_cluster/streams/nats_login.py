"""How a NATS server lets us in: secrets read where the settings say, and TLS.

Invariant: a secret is read anew for each connection and kept nowhere; what is missing or malformed
is an error before anything is sent.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import nats.errors
import nkeys

from rl_cluster.streams.nats_settings import StreamSettings, read_secret
from rl_cluster.streams.source import StreamError


def login_options(settings: StreamSettings, refusal: Callable[[], str]) -> dict[str, Any]:
    """What `Client.connect` has to be told to be let in.

    Args:
      refusal: why the server that is being connected to must not see a secret; empty: it may.

    Raises StreamError where a secret is missing or malformed.
    """
    if settings.user and settings.password:
        password = partial(read_secret, "password", settings.password)
        return {"user": settings.user, "password": _checked(password, refusal)}
    if settings.token:
        return {"token": _checked(partial(read_secret, "token", settings.token), refusal)}
    if settings.nkey_seed:
        seed = read_secret("nkey_seed", settings.nkey_seed)
        _pair("nkey_seed", seed).wipe()
        return {"nkeys_seed_str": seed}
    if settings.credentials:
        read = partial(read_secret, "credentials", settings.credentials)
        return {
            "user_jwt_cb": _checked(lambda: _section(read(), "NATS USER JWT").encode(), refusal),
            "signature_cb": _checked(lambda nonce="": _signed(read(), nonce), refusal),
        }
    return {}


def tls_options(settings: StreamSettings) -> dict[str, Any]:
    """What `Client.connect` has to be told of TLS; StreamError where a file cannot be used."""
    if not settings.wants_tls:
        return {}
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_certificate:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        files = [settings.tls_ca, settings.tls_certificate, settings.tls_key]
        names = ", ".join(file for file in files if file)
        raise StreamError(f"stream.tls_*: cannot use {names}: {error}") from None
    return {"tls": context}


def _checked(read: Callable[..., Any], refusal: Callable[[], str]) -> Callable[..., Any]:
    """`read`, which must work now, with errors that a reconnecting client survives."""
    read()

    def call(*arguments: str) -> Any:
        if problem := refusal():
            raise nats.errors.Error(problem)
        try:
            return read(*arguments)
        except StreamError as error:
            raise nats.errors.Error(str(error)) from None

    return call


def _section(credentials: str, name: str) -> str:
    """The line below `BEGIN NAME`."""
    lines = iter(credentials.splitlines())
    found = any(f"BEGIN {name}" in line for line in lines)
    value = next(lines, "").strip() if found else ""
    if not value:
        raise StreamError(f"stream.credentials: the file has no section {name!r}")
    return value


def _pair(setting: str, seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError):
        raise StreamError(f"stream.{setting}: what is there is no nkey seed") from None


def _signed(credentials: str, nonce: str) -> bytes:
    pair = _pair("credentials", _section(credentials, "USER NKEY SEED"))
    signature = base64.b64encode(pair.sign(nonce.encode()))
    pair.wipe()
    return signature
