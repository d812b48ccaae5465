"""Exported policies: as the protocol says, as the network acts, and refused where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rl_cluster import policy_export
from rl_cluster.agents.sac_networks import Actor, SACShape
from rl_cluster.agents.sac_policy import RecurrentPolicy
from rl_cluster.policy_export import PolicyError, check_policy, export_policy

SMALL = SACShape(conv_channels=(4, 8, 8), features=16, hidden=16)
torch.set_num_threads(1)


def actor_of(shape: SACShape, seed: int = 0) -> Actor:
    torch.manual_seed(seed)
    return RecurrentPolicy(shape).actor


def rows(count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    sparse = rng.random((count, SMALL.row)) * (rng.random((count, SMALL.row)) < 0.02)
    sparse[:, -6:] = rng.normal(size=(count, 6))
    return sparse.astype(np.float16)


@pytest.mark.parametrize(
    "shape", [SMALL, replace(SMALL, memory="none"), SACShape()], ids=["lstm", "none", "full"]
)
def test_an_export_is_as_the_protocol_says_and_acts_as_the_network(shape: SACShape) -> None:
    actor = actor_of(shape)
    exported = export_policy(actor)
    model = onnx.load_model_from_string(exported)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 11)]
    session = onnxruntime.InferenceSession(exported)
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    outputs = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    kind = "tensor(float)"
    assert inputs == {
        "bev": (kind, [1, 2, 128, 128]),
        "proprio": (kind, [1, 6]),
        "hx": (kind, [1, 256]),
        "cx": (kind, [1, 256]),
    }
    assert outputs == {
        "action": (kind, [1, 2]),
        "hx_out": (kind, [1, 256]),
        "cx_out": (kind, [1, 256]),
    }
    assert check_policy(exported, actor, rows()) < 1e-5


def test_a_session_that_steps_its_own_memory_drives_as_the_policy_does() -> None:
    policy = RecurrentPolicy(SMALL)
    session = onnxruntime.InferenceSession(export_policy(policy.actor))
    hx, cx = policy.start(1)
    theirs = hx, cx
    for row in rows().astype(np.float32):
        wanted, hx, cx = policy(row[None], hx, cx)
        bev, proprio = row[None, :-6].reshape(1, 2, 128, 128), row[None, -6:]
        fed = {"bev": bev, "proprio": proprio, "hx": theirs[0], "cx": theirs[1]}
        found, *theirs = session.run(["action", "hx_out", "cx_out"], fed)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(hx).max() > 0.01


def test_a_policy_of_other_weights_is_refused() -> None:
    exported = export_policy(actor_of(SMALL))
    with pytest.raises(PolicyError, match="differs from the network"):
        check_policy(exported, actor_of(SMALL, seed=1), rows())


def test_a_difference_that_grows_only_with_the_memory_is_found() -> None:
    """One step from an empty memory never reads these weights."""
    exported, actor = export_policy(actor_of(SMALL)), actor_of(SMALL)
    assert actor.trunk.memory is not None
    with torch.no_grad():
        actor.trunk.memory.weight_hh += 0.5
    check_policy(exported, actor, rows(1))
    with pytest.raises(PolicyError, match="differs from the network"):
        check_policy(exported, actor, rows(3))


def test_a_policy_that_is_not_finite_is_refused() -> None:
    actor = actor_of(SMALL)
    with torch.no_grad():
        actor.heads.mean.bias[0] = torch.nan
    with pytest.raises(PolicyError, match="not finite"):
        check_policy(export_policy(actor), actor, rows())


def renamed(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "actions"
    model.graph.node[-1].output[0] = "actions"


def newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


def wider(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 7


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, "the protocol says"),
        (newer, "operator sets {'': 12}"),
        (wider, "the protocol says"),
        (elsewhere, "another file|no valid ONNX"),
    ],
)
def test_a_file_that_is_not_as_the_protocol_says_is_refused(change: object, reason: str) -> None:
    actor = actor_of(SMALL)
    model = onnx.load_model_from_string(export_policy(actor))
    change(model)  # type: ignore[operator]
    with pytest.raises(PolicyError, match=reason):
        check_policy(model.SerializeToString(), actor, rows())


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 9])
def test_what_is_no_onnx_file_is_refused(garbage: bytes) -> None:
    with pytest.raises(PolicyError, match="no valid ONNX file"):
        check_policy(garbage, actor_of(SMALL), rows())


def test_a_policy_larger_than_the_stream_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_export, "MAX_POLICY_BYTES", 1 << 16)
    with pytest.raises(PolicyError, match=r"MiB are sent: give it fewer features"):
        export_policy(actor_of(SMALL))
