from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nkeys
import pytest
from nats_server import NatsServer
from rover_runs import (
    finish_after,
    spawn,
)


def credentials(kind: str, folder: Path) -> tuple[str, list[str]]:
    """A line of the server's configuration, and the rover's options."""
    secret = folder / "secret"
    if kind == "nkey":
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public = nkeys.from_seed(bytearray(seed)).public_key.decode()
        secret.write_bytes(seed)
        return f'authorization {{ users: [ {{ nkey: "{public}" }} ] }}', [
            "--nkey-file",
            str(secret),
        ]
    secret.write_text("open sesame\n")
    if kind == "token":
        return 'authorization { token: "open sesame" }', ["--token-file", str(secret)]
    line = 'authorization { user: "rover", password: "open sesame" }'
    return line, ["--user", "rover", "--password-file", str(secret)]


@pytest.mark.parametrize("kind", ["password", "token", "nkey"])
def test_rover_shows_its_credentials(kind: str, tmp_path: Path) -> None:
    line, options = credentials(kind, tmp_path)
    with NatsServer(tmp_path, extra=[line]) as server:
        require_delivery(server.url, *options)
        with spawn(server.url, "--synthetic", "--drain-s", "0.1") as refused:
            counts, log = finish_after(refused, "Authorization Violation")
    assert counts["acknowledged"] == 0 and "sesame" not in log


def test_rover_speaks_tls_and_trusts_only_its_authority(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=rover test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*request, *names, *files], check=True, capture_output=True)
    line = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with NatsServer(tmp_path, extra=[line]) as server:
        require_delivery(server.url, "--tls-ca", str(certificate))
        with spawn(server.url, "--synthetic", "--drain-s", "0.1") as stranger:
            counts, _ = finish_after(stranger, "CERTIFICATE_VERIFY_FAILED")
    assert counts["acknowledged"] == 0


def require_delivery(url: str, *options: str) -> None:
    with spawn(url, "--synthetic", "--hz", "600", *options) as process:
        counts, log = finish_after(process, "connected")
        assert process.returncode == 0 and counts["acknowledged"] == counts["batches"], log
