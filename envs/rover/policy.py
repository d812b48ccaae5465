"""The policy that a rover runs: an ONNX file from the training side, checked before it drives.

Invariant: a `Policy` that exists has the protocol's inputs and outputs and gave finite actions in
a trial; whatever was wrong with a file is a PolicyError. A file cannot point outside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from envs.rover.wire import ModelUpdate
from envs.rover.world import ACTIONS, BEV_SHAPE, PROPRIO

Float32s = NDArray[np.float32]

STATE = 256
MAX_POLICY_BYTES = 50 * 2**20
"""What the stream of policies takes at most."""
INPUTS = {"bev": (1, *BEV_SHAPE), "proprio": (1, PROPRIO), "hx": (1, STATE), "cx": (1, STATE)}
OUTPUTS = {"action": (1, ACTIONS), "hx_out": (1, STATE), "cx_out": (1, STATE)}
_TRIAL_STEPS = 4
_ERRORS_ONLY = 4  # Of onnxruntime's log: what it says of a broken file is in the exception.


class PolicyError(ValueError):
    """A policy that must not drive, with what was wrong."""


class State(NamedTuple):
    """The recurrent state: hx and cx, (1, 256) float32 each."""

    hx: Float32s
    cx: Float32s

    @classmethod
    def zero(cls) -> State:
        """The state at the start of an episode."""
        return cls(np.zeros((1, STATE), np.float32), np.zeros((1, STATE), np.float32))


class Policy:
    """An accepted policy.

    Args:
        update: as it arrived.

    Raises:
        PolicyError: for a file that is too big, points outside itself, does not load, has other
            inputs or outputs than the protocol says, or gives actions that are not finite or
            outside [-1, 1] in a trial.
    """

    def __init__(self, update: ModelUpdate) -> None:
        self.version = update.version
        _require_self_contained(update.onnx_bytes)
        self._session = _session(update.onnx_bytes)
        _require_signature(self._session)
        self._try()

    def act(self, bev: Float32s, proprio: Float32s, state: State) -> tuple[Float32s, State]:
        """One step: bev (2, 128, 128), proprio (6,); gives the action (2,) and the next state.

        Raises:
            PolicyError: for an action or a state that is not finite or not of the right shape.
        """
        inputs = {"bev": bev[None], "proprio": proprio[None], **state._asdict()}
        try:
            outputs = self._session.run(list(OUTPUTS), inputs)
        except Exception as error:  # noqa: BLE001 - onnxruntime's classes have no common base
            raise PolicyError(f"policy {self.version} does not run: {error}") from error
        for (name, shape), value in zip(OUTPUTS.items(), outputs, strict=True):
            if value.shape != shape or value.dtype != np.float32:
                raise PolicyError(
                    f"policy {self.version}: {name} is {value.shape} {value.dtype}, "
                    f"want {shape} float32"
                )
            if not np.isfinite(value).all():
                raise PolicyError(f"policy {self.version}: {name} is not finite")
        action, hx, cx = outputs
        return action[0], State(hx, cx)

    def _try(self) -> None:
        rng = np.random.default_rng(0)
        state = State.zero()
        views = [np.full(BEV_SHAPE, fill, np.float32) for fill in (0, 1)]
        for step in range(_TRIAL_STEPS):
            bev = views[step] if step < len(views) else rng.random(BEV_SHAPE, np.float32)
            proprio = rng.uniform(-1, 1, PROPRIO).astype(np.float32)
            action, state = self.act(bev, proprio, state)
            if np.abs(action).max() > 1:
                raise PolicyError(f"policy {self.version}: action {action} is outside [-1, 1]")


def _require_self_contained(onnx_bytes: bytes) -> None:
    if len(onnx_bytes) > MAX_POLICY_BYTES:
        raise PolicyError(f"{len(onnx_bytes)} bytes, want at most {MAX_POLICY_BYTES}")
    try:
        model = onnx.load_model_from_string(onnx_bytes)
    except Exception as error:  # noqa: BLE001 - protobuf's own, which is not our dependency
        raise PolicyError(f"{len(onnx_bytes)} bytes that are not an ONNX model") from error
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            raise PolicyError(f"tensor {tensor.name!r} lies in another file (external data)")


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors of a model's protobuf message, also those in subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _tensors(inner)


def _session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as in Policy.act
        raise PolicyError(f"onnxruntime does not load it: {error}") from error


def _require_signature(session: onnxruntime.InferenceSession) -> None:
    inputs = {value.name: (tuple(value.shape), value.type) for value in session.get_inputs()}
    wanted = {name: (shape, "tensor(float)") for name, shape in INPUTS.items()}
    if inputs != wanted:
        raise PolicyError(f"inputs are {inputs}, want {wanted}")
    outputs = {value.name for value in session.get_outputs()}
    if outputs != set(OUTPUTS):
        raise PolicyError(f"outputs are {sorted(outputs)}, want {sorted(OUTPUTS)}")
