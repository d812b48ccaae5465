"""Keys, certificates and JWTs of an authority of one's own, for servers that ask for them."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import nkeys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NO_LIMIT = -1


def new_key(prefix: int = nkeys.PREFIX_BYTE_USER) -> tuple[str, str]:
    """(public key, seed) of a new nkey."""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    return nkeys.from_seed(bytearray(seed)).public_key.decode(), bytes(seed).decode()


def _jwt(issuer: tuple[str, str], subject: str, name: str, claims: dict[str, Any]) -> str:
    body = {"iat": 1_700_000_000, "iss": issuer[0], "sub": subject, "name": name, "nats": claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode()[:52]
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, body))
    signature = nkeys.from_seed(bytearray(issuer[1].encode())).sign(text.encode())
    return f"{text}.{_base64url(signature)}"


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def operator_and_credentials(credentials: Path) -> list[str]:
    """Lines of a server's configuration; writes the `.creds` file of its one user."""
    operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = (new_key(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
    user = new_key()
    names = ("subs", "conn", "leaf", "imports", "exports", "data", "payload", "mem_storage",
             "disk_storage", "streams", "consumer")  # fmt: skip
    limits = dict.fromkeys(names, _NO_LIMIT) | {"wildcards": True}
    account_claims = {"limits": limits, "type": "account", "version": 2}
    account_jwt = _jwt(operator, account[0], "field", account_claims)
    system_claims = {"limits": limits | dict.fromkeys(names[-4:], 0), "type": "account"}
    system_jwt = _jwt(operator, system[0], "system", system_claims | {"version": 2})
    user_claims = dict.fromkeys(("subs", "data", "payload"), _NO_LIMIT)
    user_jwt = _jwt(account, user[0], "rover", user_claims | {"type": "user", "version": 2})
    operator_jwt = _jwt(operator, operator[0], "operator", {"type": "operator", "version": 2})
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user[1]}\n------END USER NKEY SEED------\n"
    )
    return [
        f"operator: {operator_jwt}",
        "resolver: MEMORY",
        f"system_account: {system[0]}",
        f"resolver_preload: {{ {account[0]}: {account_jwt}, {system[0]}: {system_jwt} }}",
    ]


class Authority:
    """A certificate authority; `ca` is the file that clients trust.

    Args:
      directory: where the files are written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = directory / "ca.pem"
        self._write(self.ca, self._signed(self._name, self._key, authority=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = (self._directory / f"{name}{end}.pem" for end in ("", "-key"))
        self._write(certificate, self._signed(subject, key, authority=False))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return certificate, private

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
