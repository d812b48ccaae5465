"""Writes the messages beside it, as another implementation of the protocol would.

By the protocol's document alone, with nothing but msgpack, zstandard and numpy:

    .venv/bin/python tests/data/rover/make.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard

STEPS = 5


def steps() -> dict[str, np.ndarray]:
    """Five steps: the third ends an episode, the last two are of a deterministic one."""
    t = np.arange(STEPS)
    bev = np.zeros((STEPS, 2, 128, 128), np.float32)
    bev[t, 0, 10 * t, 127 - t] = (t + 1) / 8
    bev[:, 1, 30:34, 60:68] = 1
    return {
        "bev": bev,
        "proprio": np.linspace(-3, 12, STEPS * 6, dtype=np.float32).reshape(STEPS, 6),
        "actions": np.linspace(-1, 1, STEPS * 2, dtype=np.float32).reshape(STEPS, 2),
        "rewards": np.linspace(-0.5, 1, STEPS, dtype=np.float32),
        "dones": t == 2,
        "is_eval": t > 2,
    }


def as_msgpack_numpy(value: Any) -> Any:
    """`default=` of a packer, as the msgpack-numpy package has it."""
    if isinstance(value, np.ndarray):
        return {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": value.shape,
            b"data": value.tobytes(),
        }
    if isinstance(value, np.bool_ | np.number):
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    raise TypeError(type(value))


def experience_of_numpy() -> bytes:
    """Arrays packed as such; metadata as our simulated rovers send them."""
    fields = steps()
    data = zstandard.ZstdCompressor(level=3).compress(fields["bev"].tobytes())
    bev = {"data": data, "shape": fields["bev"].shape, "dtype": str(fields["bev"].dtype)}
    metadata = {
        "rover_id": "yard 3",
        "sequence": 41,
        "policy_version": np.int64(7),
        "sent_at": 1.75e9,
        "battery": {"volts": 24.5},
    }
    return msgpack.packb(fields | {"bev": bev, "metadata": metadata}, default=as_msgpack_numpy)


def experience_of_lists() -> bytes:
    """Plain lists, an empty metadata map, and a zstd frame that does not say its size."""
    fields: dict[str, Any] = {name: array.tolist() for name, array in steps().items()}
    unpacked = steps()["bev"]
    stream = zstandard.ZstdCompressor().compressobj()
    data = stream.compress(unpacked.tobytes()) + stream.flush()
    fields["bev"] = {"data": data, "shape": list(unpacked.shape), "dtype": "float32"}
    return msgpack.packb(fields | {"metadata": {}})


MESSAGES = {
    "experience_numpy": experience_of_numpy,
    "experience_lists": experience_of_lists,
    "update": lambda: msgpack.packb({"onnx_bytes": bytes(range(256)), "version": 12}),
    "metadata": lambda: msgpack.packb({"latest_version": 12, "timestamp": 1.75e9}),
    "status": lambda: msgpack.packb(
        {"status": "training", "model_version": 12, "buffer_size": 9000, "total_steps": 123456}
    ),
}

if __name__ == "__main__":
    for name, message in MESSAGES.items():
        Path(__file__).with_name(f"{name}.msgpack").write_bytes(message())
