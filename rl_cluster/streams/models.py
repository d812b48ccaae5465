"""Policies on their way to the rovers, and what the training side tells of itself.

Invariants: a version is announced only after the server has acknowledged its policy, and versions
only grow, over restarts and whoever publishes: each publication names the message that it follows,
and the server refuses it if another came in between. So a publisher that was frozen and thaws
beside its heir announces nothing.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from nats.js import api
from nats.js.errors import APIError, NotFoundError

from rl_cluster.streams.codec import (
    MAX_MODEL_BYTES,
    MalformedMessage,
    PolicyMetadata,
    PolicyUpdate,
    ServerStatus,
    decode_metadata,
    decode_update,
    encode_metadata,
    encode_status,
    encode_update,
)
from rl_cluster.streams.nats_connection import Connection
from rl_cluster.streams.nats_settings import (
    CONTROL,
    METADATA,
    MIB,
    MODELS,
    STATUS,
    UPDATE,
    StreamSettings,
)
from rl_cluster.streams.nats_streams import ensure_stream, explained
from rl_cluster.streams.source import StreamError, StreamNotice

NO_VERSION = 0
"""Below the first version of a policy."""
# A file store takes records of 32 MiB, and the last message of a subject is told as base64 within
# one payload.
_HEADERS_BYTES = 4096
_MOST_BYTES = min(MAX_MODEL_BYTES, 32 * MIB) - _HEADERS_BYTES
_WRONG_LAST = 10071


class VersionTaken(StreamError):
    """A version that is not above the latest one; publish again with one above `latest`."""

    def __init__(self, version: int, latest: int) -> None:
        super().__init__(
            f"policy version {version} is not above {latest}, which rovers may have already"
        )
        self.latest = latest


@dataclass(frozen=True)
class _Last:
    """The last message of a subject."""

    position: int = 0
    version: int = NO_VERSION
    digest: bytes = b""


class ModelPublisher:
    """Sends policies and status, from one event loop.

    Args:
      settings: of the server.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._connection = Connection(settings, "rl-cluster courier")
        self._stream = MODELS.name
        self._update, self._metadata = _Last(), _Last()

    async def open(self) -> None:
        """Connect, make what is missing, and read the latest version; StreamError."""
        await self._connection.open()
        try:
            info = await ensure_stream(self._connection, MODELS)
            await ensure_stream(self._connection, CONTROL)
            assert info.config.name is not None
            self._stream = info.config.name
            await self._read()
        except StreamError:
            await self._connection.close()
            raise

    async def latest_version(self) -> int:
        """The highest that rovers may have, asked of the server; NO_VERSION without one."""
        await self._read()
        return self._latest

    async def publish(self, onnx_bytes: bytes, version: int) -> None:
        """Send a policy; returns when it is stored and announced.

        May be called again with the same policy after an error; what is done is not done twice.

        Raises:
          VersionTaken: the version is not above the latest.
          StreamError: the server does not take it; StreamUnreachable: not now.
        """
        payload = encode_update(PolicyUpdate(onnx_bytes, version))
        most = min(_MOST_BYTES, self._connection.client.max_payload - _HEADERS_BYTES)
        if len(payload) > most:
            raise StreamError(f"a policy of {len(payload):,} bytes: {most:,} are the most")
        if not self._unannounced(payload):
            if version <= self._latest:
                raise VersionTaken(version, self._latest)
            position = await self._send(UPDATE, payload, self._update, version)
            self._update = _Last(position, version, _digest(payload))
        if self._metadata.version < version:
            note = encode_metadata(PolicyMetadata(version, time.time()))
            position = await self._send(METADATA, note, self._metadata, version)
            self._metadata = _Last(position, version, _digest(note))

    async def publish_status(self, status: ServerStatus) -> None:
        """Tell rovers what is done; lost while the server is away."""
        self._connection.check_open()
        if self._connection.client.is_connected:
            await self._connection.client.publish(STATUS, encode_status(status))

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty where there is one."""
        return self._connection.trouble

    def take_notices(self) -> list[StreamNotice]:
        """What happened since the last call."""
        return self._connection.take_notices()

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.close()

    @property
    def _latest(self) -> int:
        return max(self._update.version, self._metadata.version)

    def _unannounced(self, payload: bytes) -> bool:
        """Whether this very policy was stored last, and not announced."""
        stored = self._update.digest == _digest(payload)
        return stored and self._metadata.version < self._update.version

    async def _send(self, subject: str, payload: bytes, last: _Last, version: int) -> int:
        """Its position, once it is stored behind `last`; VersionTaken if another one is."""
        expected = {"Nats-Expected-Last-Subject-Sequence": str(last.position)}
        with explained(f"policy version {version}", self._connection):
            try:
                stored = await self._connection.js.publish(subject, payload, headers=expected)
            except APIError as error:
                if error.err_code != _WRONG_LAST:
                    raise
                await self._read()
                return self._stored_after_all(subject, payload, version)
        return stored.seq

    def _stored_after_all(self, subject: str, payload: bytes, version: int) -> int:
        """The position of an earlier attempt whose acknowledgement was lost; else VersionTaken."""
        last = self._update if subject == UPDATE else self._metadata
        # An announcement tells the time, and only who stored the version's policy announces it.
        same = subject == METADATA or last.digest == _digest(payload)
        if last.version == version and same:
            return last.position
        raise VersionTaken(version, self._latest)

    async def _read(self) -> None:
        self._update = await self._last(UPDATE)
        self._metadata = await self._last(METADATA)

    async def _last(self, subject: str) -> _Last:
        with explained(f"latest message of {subject}", self._connection):
            try:
                message = await self._connection.js.get_last_msg(self._stream, subject)
            except NotFoundError:
                return _Last()
        return self._understood(subject, message)

    def _understood(self, subject: str, message: api.RawStreamMsg) -> _Last:
        payload, position = message.data or b"", message.seq or 0
        try:
            if subject == UPDATE:
                version = decode_update(payload).version
            else:
                version = decode_metadata(payload).latest_version
        except MalformedMessage as error:
            cause = f"the last message of {subject} is malformed: {error}"
            notice = StreamNotice("stream_malformed", cause, "the next policy follows it")
            self._connection.notify(notice)
            version = NO_VERSION
        return _Last(position, version, _digest(payload))


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
