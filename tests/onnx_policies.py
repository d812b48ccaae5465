"""Small policies as ONNX files, sound ones and broken ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPES = {"bev": [1, 2, 128, 128], "proprio": [1, 6], "hx": [1, 256], "cx": [1, 256]}
OUTPUTS = {"action": [1, 2], "hx_out": [1, 256], "cx_out": [1, 256]}


def model(
    bias: Sequence[float] = (0.5, -0.5),
    *,
    squash: str = "Tanh",
    inputs: dict[str, list[int]] | None = None,
    outputs: dict[str, list[int]] | None = None,
    fails_after: int = 10**6,
) -> onnx.ModelProto:
    """action = squash(bias + 0 * (proprio, bev, cx)), NaN after so many steps; hx counts steps."""
    nodes = [
        helper.make_node("Add", ["hx", "one"], ["hx_out"]),
        helper.make_node("Identity", ["cx"], ["cx_out"]),
        helper.make_node("ReduceSum", ["proprio"], ["proprio_sum"], keepdims=0),
        helper.make_node("ReduceSum", ["bev"], ["bev_sum"], keepdims=0),
        helper.make_node("ReduceMax", ["hx"], ["done"], keepdims=0),
        helper.make_node("Sub", ["allowed", "done"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["left_root"]),
        helper.make_node("Sum", ["proprio_sum", "bev_sum", "left_root"], ["seen"]),
        helper.make_node("Mul", ["seen", "zero"], ["nothing"]),
        helper.make_node("Add", ["bias", "nothing"], ["mean"]),
        helper.make_node(squash, ["mean"], ["action"]),
    ]
    constants = {"one": 1.0, "zero": 0.0, "allowed": fails_after}
    initializers = [
        numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()
    ]
    initializers.append(numpy_helper.from_array(np.array([bias], np.float32), "bias"))
    graph = helper.make_graph(
        nodes, "policy", _values(inputs or SHAPES), _values(outputs or OUTPUTS), initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def _values(shapes: dict[str, list[int]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]


def sound(bias: Sequence[float] = (0.5, -0.5), fails_after: int = 10**6) -> bytes:
    return model(bias, fails_after=fails_after).SerializeToString()


def renamed_input() -> bytes:
    """Runs, but for a name: `depth` where the protocol says `bev`."""
    whole = model(
        inputs={"depth": SHAPES["bev"], **{k: SHAPES[k] for k in ("proprio", "hx", "cx")}}
    )
    for node in whole.graph.node:
        node.input[:] = ["depth" if name == "bev" else name for name in node.input]
    return whole.SerializeToString()


def without_state() -> bytes:
    whole = model(outputs={"action": OUTPUTS["action"]})
    return whole.SerializeToString()


def narrow_state() -> bytes:
    return model(
        inputs=SHAPES | {"hx": [1, 128]}, outputs=OUTPUTS | {"hx_out": [1, 128]}
    ).SerializeToString()


def wide_action() -> bytes:
    return model((0.5, 0.5, 0.5), outputs=OUTPUTS | {"action": [1, 3]}).SerializeToString()


def external_data() -> bytes:
    """Its bias lies in a file of the rover's machine."""
    whole = model()
    bias = next(tensor for tensor in whole.graph.initializer if tensor.name == "bias")
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    bias.external_data.add(key="location", value="/etc/hostname")
    bias.external_data.add(key="length", value="8")
    return whole.SerializeToString()


def too_big() -> bytes:
    whole = model()
    ballast = np.zeros(51 * 2**18, np.float32)
    whole.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    return whole.SerializeToString()


def nested_external_data() -> bytes:
    """As above, within a branch of an If."""
    whole = model()
    inner = helper.make_tensor("secret", TensorProto.FLOAT, [1, 2], [0.0, 0.0])
    inner.ClearField("float_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="../secret")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["secret"], ["chosen"])],
        "branch",
        [],
        _values({"chosen": [1, 2]}),
        [inner],
    )
    condition = numpy_helper.from_array(np.array(True), "condition")
    whole.graph.initializer.append(condition)
    node = helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    whole.graph.node.append(node)
    return whole.SerializeToString()


BROKEN = {
    "not ONNX": b"\xff" * 100,
    "empty": b"",
    "renamed input": renamed_input(),
    "no state out": without_state(),
    "narrow state": narrow_state(),
    "three tracks": wide_action(),
    "external data": external_data(),
    "external data in a branch": nested_external_data(),
    "not finite": sound((float("nan"), 0.0)),
    "not squashed": model((2.0, 0.0), squash="Identity").SerializeToString(),
}
