"""Policies as ONNX files for rovers: made, and checked before anyone runs them.

Names, shapes and the operator set are those of the rovers' protocol. Invariant: `check_policy`
passes only what is whole in itself, looks as the protocol says, and acts as the network that it was
made of does, over consecutive steps with its own memory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from rl_cluster.agents.sac_networks import MEMORY, Actor

OPSET = 11
INPUTS = ("bev", "proprio", "hx", "cx")
OUTPUTS = ("action", "hx_out", "cx_out")
MAX_POLICY_BYTES = 48 * 2**20
"""The stream takes messages of 50 MiB: the policy, and its message's other fields."""
MAX_DIFFERENCE = 1e-4
"""Between the file and the network, in any output of any step."""


class PolicyError(ValueError):
    """A policy that must not be sent: it says why."""


def export_policy(actor: Actor) -> bytes:
    """The ONNX file of an actor, one row at a time.

    Args:
      actor: float32, on the host, in evaluation mode.

    Raises:
      PolicyError: the file is larger than the protocol's stream takes.
    """
    rows = tuple(torch.zeros(shape) for shape in input_shapes(actor).values())
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        file = Path(directory) / "policy.onnx"
        # The exporter that is to follow this one writes no operator set below 18.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            actor,
            rows,
            file,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamo=False,
        )
        exported = file.read_bytes()
    _check_size(exported)
    return exported


def check_policy(exported: bytes, actor: Actor, observations: np.ndarray) -> float:
    """Step file and network over the same rows, each with its own memory.

    Args:
      exported: an ONNX file. actor: what it was made of. observations: (K, ROW) real rows, K at
      least 1, any floating type.

    Returns:
      The greatest difference in any output of any step.

    Raises:
      PolicyError: the file is not as the protocol says, an output is not finite, or the difference
        is greater than `MAX_DIFFERENCE`.
    """
    _check_size(exported)
    _check_form(exported, actor)
    greatest = max(_differences(_session(exported), actor, observations.astype(np.float32)))
    if greatest > MAX_DIFFERENCE:
        raise PolicyError(
            f"the exported policy differs from the network by {greatest:.2g}, at most "
            f"{MAX_DIFFERENCE:g} is allowed: it was not made of these weights"
        )
    return greatest


def input_shapes(actor: Actor) -> dict[str, tuple[int, ...]]:
    """Shapes of a policy's inputs by name."""
    shape = actor.trunk.shape
    return dict(
        zip(INPUTS, ((1, *shape.bev), (1, shape.proprio), (1, MEMORY), (1, MEMORY)), strict=True)
    )


def _output_shapes(actor: Actor) -> dict[str, tuple[int, ...]]:
    actions = actor.trunk.shape.actions
    return dict(zip(OUTPUTS, ((1, actions), (1, MEMORY), (1, MEMORY)), strict=True))


def _check_size(exported: bytes) -> None:
    if len(exported) > MAX_POLICY_BYTES:
        raise PolicyError(
            f"the exported policy has {len(exported) / 2**20:.1f} MiB, at most "
            f"{MAX_POLICY_BYTES / 2**20:.0f} MiB are sent: give it fewer features or filters"
        )


def _check_form(exported: bytes, actor: Actor) -> None:
    """Names, shapes and types of inputs and outputs, the operator set, and that it is whole."""
    try:
        onnx.checker.check_model(exported)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise PolicyError(f"the exported policy is no valid ONNX file: {error}") from error
    model = onnx.load_model_from_string(exported)
    versions = {each.domain: each.version for each in model.opset_import}
    if versions != {"": OPSET}:
        raise PolicyError(f"the exported policy needs operator sets {versions}, not {OPSET}")
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in model.graph.initializer):
        raise PolicyError("the exported policy keeps weights in another file, which is not sent")
    for values, wanted in (
        (model.graph.input, input_shapes(actor)),
        (model.graph.output, _output_shapes(actor)),
    ):
        found = {value.name: _shape(value) for value in values}
        if found != wanted:
            raise PolicyError(f"the exported policy has {found}, the protocol says {wanted}")


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | str:
    """The shape of float32 numbers; else their kind."""
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        return f"type {tensor.elem_type}"
    return tuple(dimension.dim_value for dimension in tensor.shape.dim)


def _session(exported: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])


def _differences(
    session: onnxruntime.InferenceSession, actor: Actor, observations: np.ndarray
) -> Sequence[float]:
    """The greatest difference of each step."""
    theirs = ours = (np.zeros((1, MEMORY), np.float32),) * 2
    differences = []
    for row in torch.from_numpy(observations):
        bev, proprio = actor.trunk.split(row[None])
        fed = zip(INPUTS, (bev.numpy(), proprio.numpy(), *theirs), strict=True)
        found = session.run(list(OUTPUTS), dict(fed))
        with torch.inference_mode():
            wanted = actor(bev, proprio, *map(torch.from_numpy, ours))
        expected = [tensor.numpy() for tensor in wanted]
        theirs, ours = tuple(found[1:]), tuple(expected[1:])
        if not all(np.isfinite(each).all() for each in (*found, *expected)):
            raise PolicyError("the exported policy gives numbers that are not finite")
        pairs = zip(found, expected, strict=True)
        differences.append(max(float(np.abs(a - b).max()) for a, b in pairs))
    return differences
