"""The settings of a NATS JetStream server, and the streams of the rovers' protocol.

Invariant: secrets are never settings. A setting names the file, or as `env:NAME` the environment
variable, that holds one; it is read for each connection, so that it can be changed while a run goes
on, and neither settings, errors nor logs show it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rl_cluster.streams.source import StreamError

MIB = 2**20
DAY_S = 86_400.0


@dataclass(frozen=True)
class Stream:
    """A stream as it is made where it is missing; one that exists is used as it is."""

    name: str
    subjects: tuple[str, ...]
    max_msgs: int
    max_bytes: int
    max_age_s: float
    max_msg_bytes: int


EXPERIENCE = Stream(
    "ROVER_EXPERIENCE", ("rover.experience",), 1000, 10 * 1024 * MIB, 7 * DAY_S, 200 * MIB
)
MODELS = Stream(
    "ROVER_MODELS",
    ("models.sac.update", "models.sac.metadata"),
    100,
    2 * 1024 * MIB,
    30 * DAY_S,
    50 * MIB,
)
CONTROL = Stream(
    "ROVER_CONTROL",
    ("rover.status", "rover.heartbeat", "server.sac.status"),
    10_000,
    100 * MIB,
    DAY_S,
    MIB,
)
QUARANTINE = Stream(
    "ROVER_QUARANTINE", ("rover.quarantine",), 1000, 1024 * MIB, 30 * DAY_S, 200 * MIB
)
UPDATE, METADATA = MODELS.subjects
STATUS = CONTROL.subjects[2]


@dataclass(frozen=True)
class StreamSettings:
    """A server, how to be let in, and how much may be under way."""

    url: str
    """`nats://host:port`, or `tls://host:port` to refuse a server without TLS."""
    user: str | None = None
    password: str | None = None
    """Path of a file with the user's password, or `env:NAME`."""
    token: str | None = None
    """The same for a token."""
    nkey_seed: str | None = None
    """Path of a file with an nkey seed."""
    credentials: str | None = None
    """Path of a file with a JWT and a seed (`.creds`)."""
    tls_ca: str | None = None
    """Path of the authority that signed the server's certificate; None: those of the system."""
    tls_certificate: str | None = None
    """Path of our own certificate, where the server asks for one."""
    tls_key: str | None = None
    """Path of its key."""
    durable: str = "sac_trainer"
    """Name of the consumer, which the server remembers what was acknowledged by."""
    experience: Stream = EXPERIENCE
    quarantine: Stream = QUARANTINE
    ack_wait_s: float = 30.0
    """Seconds after which the server delivers again what was not acknowledged."""
    max_in_flight: int = 64
    """Messages delivered and not yet acknowledged."""
    buffer_bytes: int = 32 * MIB
    """Of messages that were delivered and not fetched; one message may exceed it."""
    max_payload_bytes: int = 64 * MIB
    """The server must take messages of this size."""
    answer_timeout_s: float = 10.0
    """Seconds in which the server must answer a question or acknowledge a policy."""
    connect_timeout_s: float = 10.0
    """Seconds in which a server must answer at the start; later it is waited for without end."""

    @property
    def wants_tls(self) -> bool:
        """Whether nothing may be sent in the clear."""
        return urlsplit(self.url).scheme == "tls" or bool(self.tls_ca or self.tls_certificate)

    def check_valid(self) -> None:
        """Raise StreamError unless the settings agree with each other."""
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise StreamError(
                "stream.url holds a user, a password or a query, and configurations are kept in "
                "run directories: name the user in `user` and the file of the password in "
                "`password`"
            )
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise StreamError(
                f"stream.url is {self.url!r}: write nats://HOST:PORT or tls://HOST:PORT"
            )
        self._check_groups()

    def _check_groups(self) -> None:
        ways = ("user", "token", "nkey_seed", "credentials")
        given = [name for name in ways if getattr(self, name)]
        if len(given) > 1:
            raise StreamError(f"stream.{' and stream.'.join(given)}: one way to be let in at most")
        for one, other in (("user", "password"), ("tls_certificate", "tls_key")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise StreamError(f"stream.{one} and stream.{other} go together: set both or none")
        for name in ("ack_wait_s", "max_in_flight", "buffer_bytes", "answer_timeout_s"):
            if getattr(self, name) <= 0:
                raise StreamError(f"stream.{name} is {getattr(self, name)}, not above 0")


def read_secret(setting: str, place: str) -> str:
    """The secret that `stream.SETTING` names the file or the variable of, without white space
    around it; StreamError shows the place, never what is there."""
    kind, _, variable = place.partition(":")
    if kind == "env":
        secret = os.environ.get(variable, "")
    else:
        try:
            secret = Path(place).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise StreamError(f"stream.{setting}: cannot read {place}: {reason}") from None
    if not secret.strip():
        raise StreamError(f"stream.{setting}: {place} is empty")
    return secret.strip()
