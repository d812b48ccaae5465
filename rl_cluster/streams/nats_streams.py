"""Streams and consumers of a JetStream server: made where they are missing, never changed.

Invariant: what exists is used as it is, whatever its settings, if it can be used at all; how it
differs from what would have been made is told as a notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import nats.errors
from nats.js import api
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError
from nats.js.errors import Error as JetStreamError

from rl_cluster.streams.nats_connection import Connection
from rl_cluster.streams.nats_settings import Stream, StreamSettings
from rl_cluster.streams.source import StreamError, StreamNotice, StreamUnreachable

_NAME_IN_USE = 10058
_SUBJECT_TAKEN = 10065


@contextmanager
def explained(doing: str, connection: Connection) -> Iterator[None]:
    """Turn nats-py's errors into StreamError, or StreamUnreachable where trying again may help."""
    try:
        yield
    except ServiceUnavailableError as error:
        reason = error.description or "JetStream does not answer; is it on (`jetstream {...}`)?"
        raise StreamUnreachable(f"{doing}: {reason}") from None
    except APIError as error:
        raise StreamError(f"{doing}: {error.description}") from error
    except (nats.errors.Error, JetStreamError, json.JSONDecodeError) as error:
        reason = connection.trouble or str(error) or type(error).__name__
        raise StreamUnreachable(f"{doing}: {reason}") from error


async def ensure_stream(connection: Connection, wanted: Stream) -> api.StreamInfo:
    """The stream that holds the wanted subjects, made if there is none."""
    with explained(f"stream {wanted.name}", connection):
        try:
            info = await connection.js.stream_info(wanted.name)
        except NotFoundError:
            info = await _made(connection, wanted)
    missing = [
        subject
        for subject in wanted.subjects
        if not any(covers(pattern, subject) for pattern in info.config.subjects or [])
    ]
    if missing:
        raise StreamError(
            f"stream {info.config.name} exists without {', '.join(missing)}: existing streams are "
            "never changed; add the subjects to it (`nats stream edit --subjects`)"
        )
    _tell(connection, f"stream {info.config.name}", _differences(info.config, wanted))
    return info


async def ensure_consumer(
    connection: Connection, settings: StreamSettings, stream: str
) -> api.ConsumerInfo:
    """The durable pull consumer, made if there is none; StreamError where it is another kind."""
    name = settings.durable
    with explained(f"consumer {name}", connection):
        try:
            info: api.ConsumerInfo = await connection.js.consumer_info(stream, name)
        except NotFoundError:
            info = await connection.js.add_consumer(stream, _consumer(settings))
    config = info.config
    if config.deliver_subject or config.ack_policy != api.AckPolicy.EXPLICIT:
        kind = "a push" if config.deliver_subject else f"an ack-{config.ack_policy}"
        raise StreamError(
            f"consumer {name} of stream {stream} is {kind} consumer, made by another program: "
            "existing ones are never changed; delete it there if nobody needs it"
        )
    _tell(connection, f"consumer {name}", _consumer_differences(config, settings))
    return info


def covers(pattern: str, subject: str) -> bool:
    """Whether a stream's subject, maybe with wildcards, takes what is published to `subject`."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">" and len(given) >= len(wanted):
        wanted, given = wanted[:-1], given[: len(wanted) - 1]
    return len(wanted) == len(given) and all(
        w in ("*", g) for w, g in zip(wanted, given, strict=True)
    )


async def _made(connection: Connection, wanted: Stream) -> api.StreamInfo:
    config = api.StreamConfig(
        name=wanted.name,
        subjects=list(wanted.subjects),
        retention=api.RetentionPolicy.LIMITS,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.OLD,
        max_msgs=wanted.max_msgs,
        max_bytes=wanted.max_bytes,
        max_age=wanted.max_age_s,
        max_msg_size=wanted.max_msg_bytes,
    )
    try:
        return await connection.js.add_stream(config)
    except APIError as error:
        if error.err_code == _NAME_IN_USE:  # by somebody who came first
            return await connection.js.stream_info(wanted.name)
        if error.err_code != _SUBJECT_TAKEN:
            raise
    name = await connection.js.find_stream_name_by_subject(wanted.subjects[0])
    return await connection.js.stream_info(name)


def _consumer(settings: StreamSettings) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        durable_name=settings.durable,
        deliver_policy=api.DeliverPolicy.ALL,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=settings.ack_wait_s,
        max_deliver=-1,
        max_ack_pending=settings.max_in_flight,
        filter_subject=settings.experience.subjects[0],
    )


def _differences(found: api.StreamConfig, wanted: Stream) -> list[str]:
    pairs = {
        "name": (found.name, wanted.name),
        "max_msgs": (found.max_msgs, wanted.max_msgs),
        "max_bytes": (found.max_bytes, wanted.max_bytes),
        "max_age": (found.max_age, wanted.max_age_s),
        "max_msg_size": (found.max_msg_size, wanted.max_msg_bytes),
        "retention": (found.retention, api.RetentionPolicy.LIMITS),
        "discard": (found.discard, api.DiscardPolicy.OLD),
        "storage": (found.storage, api.StorageType.FILE),
    }
    return _unequal(pairs)


def _consumer_differences(found: api.ConsumerConfig, settings: StreamSettings) -> list[str]:
    pairs = {
        "ack_wait": (found.ack_wait, settings.ack_wait_s),
        "max_deliver": (found.max_deliver, -1),
        "max_ack_pending": (found.max_ack_pending, settings.max_in_flight),
        "filter_subject": (found.filter_subject, settings.experience.subjects[0]),
    }
    return _unequal(pairs)


def _unequal(pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    return [f"{name} {has} (not {want})" for name, (has, want) in pairs.items() if has != want]


def _tell(connection: Connection, what: str, differences: list[str]) -> None:
    if differences:
        cause = f"{what} exists with {', '.join(differences)}"
        connection.notify(StreamNotice("stream_differs", cause, "it is used as it is"))
