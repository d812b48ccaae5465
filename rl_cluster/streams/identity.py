"""Which message it is, so that one that comes twice is known.

Invariant: the same message has the same identity at each delivery and in each life of the reader;
names that senders gave, numbers of rovers and hashes never meet.
"""

from __future__ import annotations

import hashlib

from rl_cluster.streams.codec import Metadata

UNKNOWN = "?"
"""Stands for the name of a rover that doesn't say it; no rover can be called so."""
_MAX_NAME = 128


def rover_of(metadata: Metadata) -> str:
    """The rover's name."""
    return metadata.rover_id or UNKNOWN


def source_of(metadata: Metadata) -> str:
    """What the rover's blocks name as their source."""
    return f"rover:{rover_of(metadata)}"


def identity_of(payload: bytes, message_id: str | None, metadata: Metadata) -> str:
    """Its name if its sender gave one, else rover and number, else a hash of what it holds.

    Args:
      payload: all of the message.
      message_id: its `Nats-Msg-Id`, or None.
      metadata: what it says of itself.
    """
    if message_id:
        return f"id:{_short(message_id)}"
    if metadata.rover_id is not None and metadata.sequence is not None:
        return f"rover:{metadata.rover_id}/{metadata.sequence}"
    return f"blake2b:{_digest(payload)}"


def _short(name: str) -> str:
    """A name that a header of any length gave."""
    return name if len(name) <= _MAX_NAME else f"blake2b:{_digest(name.encode())}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
