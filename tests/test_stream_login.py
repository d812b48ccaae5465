"""Being let in by real servers, in every way there is, without a secret ever being shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats_credentials import Authority, new_key, operator_and_credentials
from nats_server import NatsServer

from rl_cluster.streams.nats_settings import StreamSettings
from rl_cluster.streams.nats_source import NatsSource
from rl_cluster.streams.source import StreamError, StreamUnreachable

SECRET = "hunter2-is-the-secret"
WRONG = "another-secret"


def opened(settings: StreamSettings) -> bool:
    """Whether a source can be opened, and reads what it is sent."""

    async def attempt() -> bool:
        source = NatsSource(settings)
        await source.open()
        connected = source.status().connected
        await source.close()
        return connected

    return asyncio.run(attempt())


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"secret-{abs(hash(text))}"
    path.write_text(f"{text}\n")
    return str(path)


Way = Callable[[Path], tuple[list[str], dict[str, Any], dict[str, Any]]]
"""Lines of the server, settings that it takes, and settings that it does not."""


def by_password(tmp_path: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    lines = [f"authorization {{ user: rover, password: {SECRET} }}"]
    right = {"user": "rover", "password": file(tmp_path, SECRET)}
    return lines, right, right | {"password": file(tmp_path, WRONG)}


def by_token(tmp_path: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    lines = [f"authorization {{ token: {SECRET} }}"]
    return lines, {"token": "env:ROVER_TEST_TOKEN"}, {"token": file(tmp_path, WRONG)}


def by_nkey(tmp_path: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    public, seed = new_key()
    lines = [f"authorization {{ users: [ {{ nkey: {public} }} ] }}"]
    return (
        lines,
        {"nkey_seed": file(tmp_path, seed)},
        {"nkey_seed": file(tmp_path, new_key()[1])},
    )


def by_credentials(tmp_path: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    right, wrong = tmp_path / "right.creds", tmp_path / "wrong.creds"
    operator_and_credentials(wrong)
    lines = operator_and_credentials(right)
    return lines, {"credentials": str(right)}, {"credentials": str(wrong)}


@pytest.mark.parametrize("way", [by_password, by_token, by_nkey, by_credentials])
def test_a_server_lets_in_who_has_the_secret_and_nobody_else(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ROVER_TEST_TOKEN", SECRET)
    lines, right, wrong = way(tmp_path)
    with NatsServer(tmp_path, extra=lines) as server:
        settings = StreamSettings(server.url, **right)
        assert opened(settings)
        with pytest.raises(StreamError, match="refused us") as refused:
            opened(StreamSettings(server.url, **wrong))
        with pytest.raises(StreamError):
            opened(StreamSettings(server.url))
    shown = f"{settings!r} {refused.value} {caplog.text}"
    secrets = [SECRET, WRONG]
    for place in [*right.values(), *wrong.values()]:
        if place != "rover" and not place.startswith("env:"):
            secrets += [line for line in Path(place).read_text().split() if len(line) > 20]
    assert [secret for secret in secrets if secret in shown] == []


def test_a_password_that_changed_is_read_again_when_the_server_comes_back(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(SECRET)
    lines = [f"authorization {{ user: rover, password: {SECRET} }}"]

    async def change(server: NatsServer) -> None:
        source = NatsSource(StreamSettings(server.url, user="rover", password=str(password)))
        await source.open()
        server.kill()
        configuration = tmp_path / "nats.conf"
        configuration.write_text(configuration.read_text().replace(SECRET, WRONG))
        password.write_text(WRONG)
        server.start()
        while source.status().reconnects == 0:
            await asyncio.sleep(0.02)
        assert await source.fetch(1, 0.1) == [] and source.status().trouble == ""
        await source.close()

    with NatsServer(tmp_path, extra=lines) as server:
        asyncio.run(change(server))


def test_tls_with_an_authority_of_ones_own_and_with_a_certificate_of_ours(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), tmp_path / "stranger"
    stranger.mkdir()
    certificate, key = authority.issue("server")
    ours, our_key = authority.issue("ours")
    lines = [
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.ca}"',
        "  verify: true }",
    ]
    with NatsServer(tmp_path, extra=lines) as server:
        settings = StreamSettings(
            server.url.replace("nats://", "tls://"),
            tls_ca=str(authority.ca),
            tls_certificate=str(ours),
            tls_key=str(our_key),
        )
        assert opened(settings)
        with pytest.raises(StreamError, match=r"stream\.tls_ca"):
            opened(replace(settings, tls_ca=str(Authority(stranger).ca)))
        with pytest.raises(StreamError, match=r"stream\.tls_ca"):
            opened(replace(settings, tls_ca=None))


def test_no_secret_is_sent_to_a_server_without_tls_where_it_is_wanted(tmp_path: Path) -> None:
    lines = [f"authorization {{ user: rover, password: {SECRET} }}", "trace: true, debug: true"]
    with NatsServer(tmp_path, extra=lines) as server:
        settings = StreamSettings(server.url, user="rover", password=file(tmp_path, SECRET))
        with pytest.raises(StreamError, match="offers no TLS"):
            opened(replace(settings, url=server.url.replace("nats", "tls", 1)))
        assert "CONNECT" not in server.log.read_text()
        assert opened(settings)
        assert "CONNECT" in server.log.read_text(), "the trace would have shown it"


def test_a_server_without_tls_is_refused_where_it_is_wanted_also_without_secrets(
    tmp_path: Path,
) -> None:
    with (
        NatsServer(tmp_path) as server,
        pytest.raises(StreamError, match="offers no TLS"),
    ):
        opened(StreamSettings(server.url.replace("nats", "tls", 1)))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"url": f"nats://rover:{SECRET}@127.0.0.1:1"}, r"stream\.url holds"),
        ({"url": "http://127.0.0.1:1"}, r"nats://HOST:PORT"),
        ({"url": "nats://127.0.0.1:1", "user": "rover"}, r"go together"),
        ({"url": "nats://127.0.0.1:1", "token": "a", "nkey_seed": "b"}, r"one way"),
        ({"url": "nats://127.0.0.1:1", "token": "env:ROVER_TEST_NONE"}, r"_NONE is empty"),
        ({"url": "nats://127.0.0.1:1", "token": "/nowhere/token"}, r"cannot read /nowhere/token"),
        ({"url": "nats://127.0.0.1:1", "nkey_seed": "SECRET_FILE"}, r"no nkey seed"),
        ({"url": "nats://127.0.0.1:1", "credentials": "SECRET_FILE"}, r"no section"),
        ({"url": "nats://127.0.0.1:1", "tls_ca": "SECRET_FILE"}, r"cannot use"),
        ({"url": "nats://127.0.0.1:1", "max_in_flight": 0}, r"max_in_flight is 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_errors_before_anything_is_sent(
    given: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    place = file(tmp_path, SECRET)
    settings = {key: place if value == "SECRET_FILE" else value for key, value in given.items()}
    with pytest.raises(StreamError, match=complaint) as refused:
        opened(StreamSettings(**settings))
    assert SECRET not in str(refused.value)


def test_a_server_that_is_not_there_is_told_from_one_that_refuses(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    with pytest.raises(StreamUnreachable, match="is the server running"):
        opened(StreamSettings(server.url, connect_timeout_s=0.5))


def test_a_server_with_the_stock_payload_limit_is_refused_with_the_name_of_the_setting(
    tmp_path: Path,
) -> None:
    with (
        NatsServer(tmp_path, max_payload=2**20) as server,
        pytest.raises(StreamError, match=r"1,048,576 bytes.*set `max_payload: 67108864`"),
    ):
        opened(StreamSettings(server.url))
