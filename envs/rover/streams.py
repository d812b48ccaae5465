"""The JetStream streams of the protocol, as a rover makes them where they are missing.

Invariant: a stream that exists is left as it is, whoever made it and however it differs.
"""

from __future__ import annotations

import logging

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from envs.rover.wire import EXPERIENCE, MODEL_METADATA, MODEL_UPDATE, SERVER_STATUS

MODELS = "ROVER_MODELS"
# JetStream's codes: a stream of this name differs; another one has some of the subjects.
_NAME_IN_USE, _SUBJECTS_OVERLAP = 10058, 10065
_MIB, _GIB, _DAY_S = 2**20, 2**30, 86400

_log = logging.getLogger(__name__)

STREAMS = (
    StreamConfig(
        name="ROVER_EXPERIENCE",
        subjects=[EXPERIENCE],
        max_msgs=1000,
        max_bytes=10 * _GIB,
        max_age=7 * _DAY_S,
        max_msg_size=200 * _MIB,
    ),
    StreamConfig(
        name=MODELS,
        subjects=[MODEL_UPDATE, MODEL_METADATA],
        max_msgs=100,
        max_bytes=2 * _GIB,
        max_age=30 * _DAY_S,
        max_msg_size=50 * _MIB,
    ),
    StreamConfig(
        name="ROVER_CONTROL",
        subjects=["rover.status", "rover.heartbeat", SERVER_STATUS],
        max_msgs=10_000,
        max_bytes=100 * _MIB,
        max_age=_DAY_S,
        max_msg_size=_MIB,
    ),
)


async def ensure_streams(jetstream: JetStreamContext) -> None:
    """Make the streams that the server has not; APIError where it does not make them."""
    for config in STREAMS:
        try:
            await jetstream.stream_info(config.name or "")
        except NotFoundError:
            await _make(jetstream, config)


async def _make(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await jetstream.add_stream(
            config,
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
        )
    except BadRequestError as error:
        # Somebody else made it since we asked, or what it is for is kept by another stream.
        if error.err_code not in (_NAME_IN_USE, _SUBJECTS_OVERLAP):
            raise
        _log.warning("stream %s not made: %s", config.name, error.description)
