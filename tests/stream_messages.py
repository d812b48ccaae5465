"""Rovers' messages for tests: experience of chosen flags, and the document's form of one."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import zstandard

from rl_cluster.streams.codec import Experience, Metadata


def experience_of(
    dones: list[bool] | np.ndarray,
    is_eval: list[bool] | np.ndarray | None = None,
    metadata: Metadata = Metadata(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Experience:
    """Steps with these flags; all else is random, and as wide as the protocol allows."""
    rng, steps = np.random.default_rng(seed), len(dones)
    bev = np.zeros((steps, 2, 128, 128), np.float32)
    bev[:, :, 3:9, 5:8] = rng.random((steps, 2, 6, 3))
    return Experience(
        bev,
        rng.normal(scale=3, size=(steps, 6)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rng.uniform(-1, 1, steps).astype(np.float32),
        np.array(dones, np.bool_),
        np.zeros(steps, np.bool_) if is_eval is None else np.array(is_eval, np.bool_),
        metadata,
    )


def documented(experience: Experience) -> dict[str, Any]:
    """Fields by the protocol's document, all numbers as plain lists, before packing."""
    return {
        "bev": {
            "data": zstandard.ZstdCompressor().compress(experience.bev.tobytes()),
            "shape": list(experience.bev.shape),
            "dtype": "float32",
        },
        "proprio": experience.proprio.tolist(),
        "actions": experience.actions.tolist(),
        "rewards": experience.rewards.tolist(),
        "dones": experience.dones.tolist(),
        "is_eval": experience.is_eval.tolist(),
        "metadata": {},
    }


def packed(**changed: Any) -> bytes:
    """A message of three steps with some fields changed; None: left out."""
    fields = documented(experience_of([False, True, False])) | changed
    return msgpack.packb({name: value for name, value in fields.items() if value is not None})


def nd(array: np.ndarray, **changed: Any) -> dict[bytes, Any]:
    """An array in the form of the msgpack-numpy package."""
    fields = {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": list(array.shape),
        b"data": array.tobytes(),
    }
    return fields | {name.encode(): value for name, value in changed.items()}


def as_text_keys(fields: dict[bytes, Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in fields.items()}


def assert_same_experience(found: Experience, wanted: Experience) -> None:
    """Bit for bit, in value, shape and dtype; and in metadata."""
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert (other.dtype, other.shape) == (value.dtype, value.shape), name
            assert other.tobytes() == value.tobytes(), name
        else:
            assert other == value, name
